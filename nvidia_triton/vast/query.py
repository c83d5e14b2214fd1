"""What an offer must have."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """Prices are dollars an hour, storage included; memory is GB on each GPU, `inet_down` Mbit/s.

    With a `bid`, also dollars an hour, interruptible offers are asked for: those that can be had for it. `image` is
    what `cuda` and `driver` are needed for.
    """

    gpus: int = 1
    vram_gb: float = 0.0
    gpu_names: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    max_price: float | None = None
    disk_gb: float = 0.0
    image: str = ""
    cuda: str = ""
    driver: str = ""
    direct_ports: int = 0
    inet_down: float = 0.0
    reliability: float = 0.0
    verified: bool = False
    bid: float | None = None
