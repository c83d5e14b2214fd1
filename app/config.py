"""Every setting of the API and the dispatcher, read once from the environment."""

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.database_url import ConnectArguments, connect_arguments
from app.settings_checks import check_networks, check_passwords, check_proxy, check_servers, check_traces

# What TRITON_URLS says where no server is fixed; an empty variable means the default.
NO_SERVERS = "none"
NO_PROXIES = "none"
NOTHING_KEPT = "NONE"

Seconds = Annotated[float, Field(gt=0)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)]
KeptLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "NONE"], BeforeValidator(str.upper)]


class Environment(StrEnum):
    DEVELOPMENT = "development"
    PRODUCTION = "production"


class KeylessAccess(StrEnum):
    """Who is answered without an API key."""

    NONE = "none"
    LOCAL = "local"
    ANYWHERE = "anywhere"


class SettingsError(Exception):
    """The environment holds a setting that cannot work; the text names it."""


# Those that an admin may change while everything runs: whoever uses one reads it when it is needed.
CHANGEABLE = (
    *("log_level", "log_kept_level", "interactive_share", "model_reloads_per_hour", "flex_price_factor"),
    *("result_retention_days", "audit_retention_days", "host_retention_days"),
)
LONGEST_DAYS = 36_500


class Settings(BaseSettings):
    """Field names in upper case are the environment variables."""

    # Of CHANGEABLE, what the environment says.
    _environment: dict[str, Any] = PrivateAttr(default_factory=dict)

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    environment: Environment = Field(Environment.DEVELOPMENT, description="`production` refuses development passwords")
    database_url: str = Field(
        "postgresql://tickets:tickets-dev-only@127.0.0.1:15432/tickets",
        description="Postgres 18 or later, `postgresql://user:password@host:port/database`; TLS, several hosts and the "
        "rest: [docs/database.md](docs/database.md)",
    )
    database_listen_url: str | None = Field(
        None,
        description="Postgres itself, where `DATABASE_URL` is a pooler in transaction mode such as PgBouncer: for the "
        "connection that listens, and for migrations",
    )
    database_pool_size: int = Field(10, ge=2, description="connections one process keeps to Postgres")
    triton_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1:8001",),
        description="gRPC addresses of the Triton servers, `host:port`, comma-separated; `none` where there is none",
    )
    triton_servers_file: Path | None = Field(
        None, description="JSON file with more servers, read again with every probe: [docs/scaling.md](docs/scaling.md)"
    )

    credential_directory: Path = Field(
        Path("/run/secrets"), description="folder below which the files of servers' credentials lie, `file:PATH`"
    )

    api_host: str = Field("127.0.0.1", description="address the API listens on")
    api_port: int = Field(8887, ge=1, le=65535, description="port the API listens on")
    root_path: str = Field(
        "", description="path below which a proxy offers the API, `/llm`: [docs/proxy.md](docs/proxy.md)"
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1", "::1"),
        description="addresses and networks whose `X-Forwarded-For`, `-Proto`, `-Host` and `-Prefix` are believed, "
        "comma-separated; `none` where there is none",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="origins whose pages may call the API from a browser, `https://app.example.org`, comma-separated, "
        "or `*`",
    )
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="largest request body, in bytes")
    body_seconds: float = Field(
        30.0,
        ge=0.1,
        description="so long a request body may pause, and as long may it take with a second more for each KiB of it",
    )
    max_bodies_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024,
        description="what the bodies of all requests under way in one API come to at most, in bytes, uploads apart; "
        "those of up to 64 KiB have a sixteenth more: [docs/scaling.md](docs/scaling.md#memory)",
    )
    max_file_bytes: int = Field(200 * 1024 * 1024, ge=1024, description="largest file of batch requests, in bytes")
    max_owner_file_bytes: int = Field(
        10 * 1024**3, ge=0, description="what the files of one owner may come to, in bytes; 0 for no bound"
    )
    flex_price_factor: float = Field(
        1.0, ge=0, le=1, description="of a server's price, what a request with `service_tier: flex` costs"
    )
    spool_bytes: int = Field(
        1024**3,
        ge=1024,
        description="room for the uploads that are being received, in bytes, in the folder that `TMPDIR` names",
    )
    batch_checkers: int = Field(
        2,
        ge=0,
        le=64,
        description="processes in which an API checks the lines of batches of more than 1 MiB, each about 90 MiB while "
        "there are such; 0 checks them in the API itself",
    )
    max_content_chars: int = Field(1_000_000, ge=1, description="longest `content` of a context")
    model_repository: str = Field(
        "models",
        description="folder of the Triton model repository, where the models' chat templates and adapters are read",
    )
    max_answer_bytes: int = Field(
        16 * 1024 * 1024,
        ge=1024,
        le=128 * 1024 * 1024,
        description="largest answer, all its choices and logprobs together, in bytes",
    )
    max_in_flight_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1024,
        description="what a dispatcher has in flight at most, prompts and what their answers may come to, in bytes; "
        "one ticket that is larger runs all the same: [docs/scaling.md](docs/scaling.md#memory)",
    )
    default_model: str | None = Field(
        None,
        description="what answers requests below `/tgi`, `/protollm` and `/api` that name no model; empty: the only "
        "one with a chat template: [docs/neighbours.md](docs/neighbours.md)",
    )
    search_embedding_model: str | None = Field(
        None,
        description="model that makes vectors of the questions in chats, so that they are found by meaning; needs "
        "pgvector; empty: by words only: [docs/console.md](docs/console.md#search-by-meaning)",
    )
    default_max_tokens: int = Field(512, ge=1, description="`max_tokens` where a request names none")

    model_concurrency: int = Field(
        64,
        ge=1,
        description="generations in flight per model on each server; 16 with `make run`, as many as the local engine "
        "runs",
    )
    interactive_share: float = Field(
        1 / 16,
        ge=0,
        lt=1,
        description="share of each server's slots, rounded down, that batches and other work of lower priority never "
        "get, so that a single prompt finds one free",
    )
    lease_seconds: Seconds = Field(30.0, description="how long a claim lasts without renewal")
    poll_seconds: Seconds = Field(1.0, description="look for work this often, also without a wake-up")
    max_attempts: int = Field(5, ge=1, description="tries before a retryable fault becomes final")
    idle_timeout_seconds: Seconds = Field(120.0, description="longest silence of an engine within one attempt")
    run_timeout_seconds: Seconds = Field(1800.0, description="longest generation of one text")
    drain_seconds: float = Field(20.0, ge=0, description="how long a stopping dispatcher lets its runs finish")
    probe_seconds: Seconds = Field(2.0, description="how often each Triton server is asked for its state")
    priority_ageing_seconds: Seconds = Field(60.0, description="waiting this long makes up for one step of priority")

    server_concurrency: int = Field(256, ge=1, description="requests in flight on each server, all models together")
    stall_seconds: Seconds = Field(
        30.0, description="a server whose runs make no progress for this long is tested, and set aside if it is stuck"
    )
    model_reloads_per_hour: int = Field(
        6,
        ge=0,
        le=1000,
        description="how often in an hour a dead model is unloaded and loaded again, on each server; 0 never does",
    )
    result_retention_days: float | None = Field(
        None,
        gt=0,
        le=LONGEST_DAYS,
        description="final results and their contexts are removed after this; empty keeps all",
    )
    audit_retention_days: float | None = Field(
        None, gt=0, le=LONGEST_DAYS, description="entries of the audit log are removed after this; empty keeps all"
    )
    host_retention_days: float | None = Field(
        90.0,
        ge=30,
        le=LONGEST_DAYS,
        description="rented hosts that have ended, and their events, are removed after this; what they cost stays. "
        "Empty keeps all",
    )
    stream_retention_seconds: Seconds = Field(
        600.0, description="how long after a result's end a cut stream of it can be resumed"
    )

    capacity_definitions: Annotated[tuple[Path, ...], NoDecode] = Field(
        (Path("nvidia_triton/vastai_instance_definition.yaml"),),
        description="files with the pools of hosts that follow the queue, comma-separated: "
        "[docs/capacity.md](docs/capacity.md)",
    )
    capacity_seconds: Seconds = Field(2.0, le=60, description="how often the controller of hosts decides")
    capacity_lease_seconds: float = Field(
        15.0, ge=2, description="how long a controller of hosts that died keeps others from deciding"
    )
    capacity_bind: str = Field(
        "127.0.0.1",
        description="address on which the tunnels to hosts listen; Triton has no authentication, so never a public one",
    )
    capacity_address: str | None = Field(
        None, description="where the API and dispatchers reach these tunnels; empty: at `CAPACITY_BIND`"
    )

    capacity_webhook_url: str | None = Field(
        None,
        description="where the controller of hosts says that 50, 80 and 100 % of a budget are spent: "
        "[docs/capacity.md](docs/capacity.md)",
    )

    auth_required: bool | None = Field(
        None,
        description="whether a request needs an API key; empty: yes, unless it is made on this machine, to a loopback "
        "address on which alone the API listens, and `ENVIRONMENT` is not `production`, which always needs one",
    )

    webhook_allow_private: bool = Field(
        False, description="webhooks may go to loopback and private addresses; for development"
    )
    webhook_allow_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="networks that webhooks may go to although they are not public, `10.1.0.0/16`, comma-separated"
    )
    webhook_allow_http: bool = Field(False, description="webhooks may go to `http://` also in production")

    fetch_images: bool = Field(
        False,
        description="images of chats at `https://` addresses are fetched, from public addresses alone; otherwise they "
        "are refused, save for servers of the kind `openai`, which get the address",
    )

    otel_exporter_otlp_endpoint: str | None = Field(
        None,
        description="where OpenTelemetry traces go by OTLP over HTTP, `http://127.0.0.1:4318`; empty sends none: "
        "[docs/operations.md](docs/operations.md)",
    )
    otel_exporter_otlp_protocol: str = Field(
        "http/protobuf", description="the protocol of traces, of which there is this one; `grpc` is refused"
    )
    log_level: LogLevel = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_kept_level: KeptLevel = Field(
        "WARNING",
        description="log lines from this level on are kept in Postgres too, the newest 5,000 of each kind of process, "
        "for the console; `NONE` keeps none",
    )
    dispatcher_metrics_port: int = Field(
        0, ge=0, le=65535, description="Prometheus port of the dispatcher; 0 serves none"
    )

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, object]) -> dict[str, object]:
        urls = values.get("triton_urls")
        if isinstance(urls, str):
            named = () if urls.strip().lower() == NO_SERVERS else urls.split(",")
            values["triton_urls"] = tuple(url.strip() for url in named if url.strip())
        proxies = values.get("trusted_proxies")
        if isinstance(proxies, str) and proxies.strip().lower() == NO_PROXIES:
            values["trusted_proxies"] = ()
        for name in ("webhook_allow_networks", "trusted_proxies", "cors_origins", "capacity_definitions"):
            listed = values.get(name)
            if isinstance(listed, str):
                values[name] = tuple(each.strip() for each in listed.split(",") if each.strip())
        return values

    @model_validator(mode="after")
    def _refuse_what_cannot_work(self) -> Self:
        passwords = {
            "DATABASE_URL": self.database_arguments.password,
            "DATABASE_LISTEN_URL": self.listen_arguments.password,
        }
        if self.environment is Environment.PRODUCTION:
            check_passwords(passwords)
        if self.environment is Environment.PRODUCTION and self.auth_required is False:
            raise ValueError(
                "AUTH_REQUIRED is off and ENVIRONMENT is production: leave AUTH_REQUIRED empty, and make a key with "
                "`make key NAME=...` or `python -m app.cli.keys create NAME`"
            )
        check_servers(self.triton_urls)
        check_networks(self.webhook_allow_networks)
        if self.max_bodies_bytes < self.max_body_bytes:
            raise ValueError(
                "MAX_BODIES_BYTES is less than MAX_BODY_BYTES, so the largest requests could never be taken"
            )
        if self.spool_bytes < self.max_file_bytes:
            raise ValueError("SPOOL_BYTES is less than MAX_FILE_BYTES, so the largest files could never be uploaded")
        check_proxy(self.root_path, self.trusted_proxies, self.cors_origins)
        check_traces(self.otel_exporter_otlp_endpoint, self.otel_exporter_otlp_protocol)
        return self

    @cached_property
    def keyless_access(self) -> KeylessAccess:
        if self.auth_required or self.environment is Environment.PRODUCTION:
            return KeylessAccess.NONE
        return KeylessAccess.LOCAL if self.auth_required is None else KeylessAccess.ANYWHERE

    @cached_property
    def database_arguments(self) -> ConnectArguments:
        return connect_arguments(self.database_url)

    @cached_property
    def listen_arguments(self) -> ConnectArguments:
        """Of a connection that keeps its session: what it listens to, and its locks."""
        if self.database_listen_url is None:
            return self.database_arguments
        return connect_arguments(self.database_listen_url, "DATABASE_LISTEN_URL")

    def change(self, changes: Mapping[str, Any]) -> None:
        """Has these of CHANGEABLE in place of what the environment says, and all others of them as it says.

        Whoever holds these settings reads them from now on; nothing else of them ever changes.
        """
        for name in CHANGEABLE:
            self._environment.setdefault(name, getattr(self, name))
        self.__dict__.update(self._environment | dict(changes))

    def of_environment(self, name: str) -> Any:
        """What the environment says, whatever was changed."""
        return self._environment.get(name, getattr(self, name))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy in which what is made of other settings is made anew, and `update` counts as the environment's."""
        copied = super().model_copy(update=update, deep=deep)
        for name, value in vars(Settings).items():
            if isinstance(value, cached_property):
                copied.__dict__.pop(name, None)
        copied._environment = {name: said for name, said in self._environment.items() if name not in (update or {})}
        return copied

    @property
    def pooled(self) -> bool:
        """Whether DATABASE_URL is a pooler in transaction mode."""
        return self.database_listen_url is not None


def load_settings() -> Settings:
    """Reads the environment.

    Raises:
        SettingsError: one sentence for each setting that is off.
    """
    try:
        return Settings()
    except ValidationError as error:
        parts = []
        for problem in error.errors(include_url=False, include_input=False):
            name = "_".join(str(part) for part in problem["loc"]).upper()
            message = problem["msg"].removeprefix("Value error, ")
            parts.append(f"{name}: {message}" if name else message)
        raise SettingsError("; ".join(parts)) from None
