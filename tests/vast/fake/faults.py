"""What a test can have go wrong, and what the rented machines are made of."""

from dataclasses import dataclass, field
from typing import Any

REQUIREMENT_ERROR = (
    "Error response from daemon: failed to create task for container: nvidia-container-cli: requirement error: "
    "unsatisfied condition: cuda>=13.0, please update your driver to a newer version"
)


@dataclass
class Faults:
    """Counters go down by one with each call they spoil; the other values stay until they are changed."""

    offers_gone: int = 0
    create_unavailable: int = 0
    create_unavailable_empty: int = 0
    create_cut: int = 0
    create_refused: int = 0
    create_seconds: float = 0.0
    end_state: str | None = None
    status_msg: str = REQUIREMENT_ERROR
    ssh_key_seconds: float = 0.0
    rate_limited: int = 0
    broken: int = 0
    min_interval: float = 0.0
    paths: str = ""
    destroy_refused: int = 0
    destroy_ignored: int = 0
    odd: int = 0
    odd_status: int = 200
    odd_body: str = "<html><body>Bad Gateway</body></html>"
    retry_after: str = ""
    unlisted: int = 0
    row: dict[str, Any] = field(default_factory=dict)
    start_refused: int = 0
    away: bool = False
    clock_seconds: float = 0.0
    auth_status: int = 401  # what a wrong key gets: 401 or 404

    def takes(self, name: str) -> bool:
        """Whether this call is to be spoilt by the counter `name`, which goes down."""
        left = int(getattr(self, name))
        if left > 0:
            setattr(self, name, left - 1)
        return left > 0


@dataclass(frozen=True)
class Machine:
    """A rented machine; sizes in MiB."""

    gpu: str = "NVIDIA GeForce RTX 4090"
    gpu_count: int = 1
    memory_mib: int = 24564
    driver: str = "580.95.05"
    nvidia_smi: bool = True
    shm_mib: int = 256
    rsync: bool = True
    apt: bool = True
    triton: bool = True
    direct: bool = True
