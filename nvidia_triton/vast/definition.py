"""What is rented and what runs on it: nvidia_triton/vastai_instance_definition.yaml, checked key by key."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from nvidia_triton.checked_yaml import UnusableFile, problems, read
from nvidia_triton.vast import images
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.query import Query as OfferQuery

ONSTART_CHARS = 4000
VALUE_CHARS = 255
OURS = (
    *("--model-repository", "--model-control-mode", "--load-model", "--repository-poll-secs", "--allow-"),
    *("--http-", "--grpc-port", "--grpc-address", "--metrics-", "--sagemaker-", "--vertex-ai-"),
)
SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY)$", re.IGNORECASE)
MODEL_REPOSITORY = "/opt/models"


def _unquoted_number(value: Any) -> Any:
    """Hints at the one mistake that would go unseen: YAML reads 13.10 as the number 13.1."""
    if isinstance(value, int | float):
        raise ValueError('write it in quotes, "13.0", since YAML takes 13.10 and 13.1 for the same number')
    return value


Version = Annotated[str, BeforeValidator(_unquoted_number), Field(pattern=r"^\d+(\.\d+)*$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Minutes = Annotated[float, Field(gt=0, le=1440)]
Port = Annotated[int, Field(ge=1024, le=65535)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class Image(Part):
    """`cuda` and `driver` are what the image asks of the host; known for the usual tags.

    With the tag `auto` they are those of the oldest known image, and the newest that the chosen host carries is rented.
    """

    repository: str = Field(default="nvcr.io/nvidia/tritonserver", pattern=r"^[a-z0-9][\w.:/-]*$")
    tag: str = "25.10-vllm-python-py3"
    cuda: Version = ""
    driver: Version = ""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        tag = str(values.get("tag", cls.model_fields["tag"].default))
        known = images.RELEASES[0] if tag == images.AUTO else images.release_of(tag)
        if known is None and not {"cuda", "driver"} <= values.keys():
            raise ValueError(
                f"what {tag} asks of the host is not known here: add `cuda` and `driver` from the release notes, "
                f"or use {images.AUTO} or one of {images.NUMBERS}"
            )
        return ({"cuda": known.cuda, "driver": known.driver} if known else {}) | values

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}"

    def on(self, cuda: str, driver: str) -> Self:
        """The image for a host with this CUDA and driver."""
        newest = images.newest_for(cuda, driver)
        if self.tag != images.AUTO or newest is None:
            return self
        return self.model_copy(update={"tag": newest.tag, "cuda": newest.cuda, "driver": newest.driver})

    def named(self, name: str) -> Self:
        """With `auto`, the image of a host that runs the image `name`."""
        release = images.release_of(name.rpartition(":")[2])
        return self.on(release.cuda, release.driver) if release else self


class Query(Part):
    """What an offer must have. `gpu_ram` in GB for each GPU, `inet_down` in Mbit/s, `countries` as two letters."""

    num_gpus: int = Field(1, ge=1, le=64)
    gpu_ram: float = Field(24, gt=0, le=10_000)
    gpu_names: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$")], ...] = ()
    countries: tuple[Annotated[str, Field(pattern="^[A-Z]{2}$")], ...] = ()
    direct_port_count: int = Field(1, ge=0)
    inet_down: float = Field(500, ge=0)
    reliability: float = Field(0.98, ge=0, le=1)
    verified: bool = True


class Ports(Part):
    """Where Triton listens, on the loopback of the instance."""

    http: Port = 8000
    grpc: Port = 8001
    metrics: Port = 8002


class Triton(Part):
    """`flags` come after those that keep it private and under our control."""

    ports: Ports = Ports()
    flags: tuple[str, ...] = ()

    @field_validator("flags")
    @classmethod
    def _not_ours(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        for flag in flags:
            if not flag.startswith("--"):
                raise ValueError(f"{flag!r} does not start with --")
            if flag.startswith(OURS):
                raise ValueError(
                    f"{flag.split('=')[0]} is set by the targets: Triton has no authentication, so it listens on the "
                    "instance's loopback alone; `triton.ports` moves it"
                )
        return flags

    def arguments(self) -> list[str]:
        """All arguments of tritonserver."""
        local = "127.0.0.1"
        return [
            f"--model-repository={MODEL_REPOSITORY}",
            "--model-control-mode=explicit",
            *(f"--{name}-address={local}" for name in ("http", "grpc", "metrics")),
            f"--http-port={self.ports.http}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            *self.flags,
        ]


class Needs(Part):
    """What run-tritonserver checks on the instance before it starts Triton."""

    shm_mib: int = Field(128, ge=0)
    free_disk_gb: float = Field(2, ge=0)


class Deadlines(Part):
    """Minutes after which waiting ends with an error."""

    running: Minutes = 30
    ssh: Minutes = 5
    triton: Minutes = 5
    load: Minutes = 60


class InstanceDefinition(Part):
    """`max_price` and `bid` in dollars an hour, `disk` in GB. With a bid, interruptible hosts are rented."""

    image: Image = Field(default_factory=lambda: Image.model_validate({}))
    query: Query = Query()
    max_price: float = Field(0.8, gt=0, lt=1000)
    bid: float | None = Field(None, gt=0, lt=1000)
    disk: float = Field(80, ge=10, le=100_000)
    env: dict[Variable, str] = Field(default_factory=dict)
    onstart: str
    triton: Triton = Triton()
    needs: Needs = Needs()
    models: tuple[str, ...] = Field(min_length=1)
    deadline_minutes: Deadlines = Deadlines()
    # What the service's controller of hosts reads, and checks itself.
    pools: Any = None
    budget: Any = None

    def offer_query(self, max_price: float | None = None) -> OfferQuery:
        """What an offer must have; `max_price` in place of the definition's."""
        return OfferQuery(
            gpus=self.query.num_gpus,
            vram_gb=self.query.gpu_ram,
            gpu_names=self.query.gpu_names,
            countries=self.query.countries,
            max_price=self.max_price if max_price is None else max_price,
            disk_gb=self.disk,
            image=self.image.tag,
            cuda=self.image.cuda,
            driver=self.image.driver,
            direct_ports=self.query.direct_port_count,
            inet_down=self.query.inet_down,
            reliability=self.query.reliability,
            verified=self.query.verified,
            bid=self.bid,
        )

    @field_validator("env")
    @classmethod
    def _short_and_not_secret(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if len(value) > VALUE_CHARS:
                raise ValueError(f"{name} is longer than {VALUE_CHARS} characters, which is all Vast.ai takes")
            if "\0" in value:
                raise ValueError(f"{name} holds a character that no variable can hold")
            if SECRET.search(name):
                raise ValueError(
                    f"{name} is a secret and this file is tracked by git: HF_TOKEN goes into .env.vast or is exported, "
                    "and no other reaches the instance"
                )
        return env

    @field_validator("onstart")
    @classmethod
    def _fits(cls, script: str) -> str:
        if len(script) >= ONSTART_CHARS:
            raise ValueError(f"has {len(script)} characters, and Vast.ai takes fewer than {ONSTART_CHARS}")
        return script

    @model_validator(mode="after")
    def _bid_within_price(self) -> Self:
        if self.bid is not None and self.bid > self.max_price:
            raise ValueError(f"bid ({self.bid:g}) is more than max_price ({self.max_price:g}), which caps it: lower it")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports = self.triton.ports
        if len({ports.http, ports.grpc, ports.metrics}) < 3:
            raise ValueError("triton.ports: three different ports are needed")
        return self


def load_definition(path: Path, changes: Mapping[str, Any] | None = None) -> InstanceDefinition:
    """`changes` stand in place of keys of the file.

    Raises:
        TargetError: the file is missing or does not hold a definition; each wrong key is named.
    """
    try:
        found = read(path)
        return InstanceDefinition.model_validate({**found, **changes} if changes and isinstance(found, dict) else found)
    except UnusableFile as error:
        raise TargetError(str(error)) from None
    except ValidationError as error:
        raise TargetError(f"{path.name} has keys that cannot be used:\n{problems(error)}") from None
