"""Instances of AWS that exist already: started when they are wanted and stopped, never made and never terminated.

A stopped instance costs no more than its disks, which its owner pays for in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nvidia_triton.providers import base
from nvidia_triton.providers.market import fitting
from nvidia_triton.vast.definition import InstanceDefinition
from nvidia_triton.vast.query import Query

T = TypeVar("T")
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]

TAG = "triton-tickets"
CONNECT_SECONDS, READ_SECONDS = 5, 30
STATES: Mapping[str, base.HostState] = {"pending": "starting", "running": "running", "stopping": "stopped"}
# Somebody else uses it, or AWS has no such machine free: another one may do.
GONE = frozenset(
    {"IncorrectInstanceState", "IncorrectState", "InsufficientInstanceCapacity", "IncorrectSpotRequestState"}
)
BUSY = frozenset(
    {"RequestLimitExceeded", "Throttling", "InternalError", "InternalFailure", "Unavailable", "ServiceUnavailable"}
)


class Ec2Instance(BaseModel):
    """Prices are dollars an hour: while it runs, with its disks, and for these alone. `vram_gb` is of each GPU."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^i-[0-9a-f]{8,17}$")
    price: Amount
    storage_price: Amount = 0.0
    gpu: str = "?"
    gpus: int = Field(1, ge=0)
    vram_gb: Amount = 0.0


class Ec2Options(BaseModel):
    """Keys are where boto3 looks for them: the environment, ~/.aws or the machine's role."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    region: str = Field(min_length=1)
    instances: tuple[Ec2Instance, ...] = Field(min_length=1)
    address: Literal["public", "private"] = "public"
    user: str = Field("root", min_length=1)


class Ec2Provider:
    """Who has an instance stands in its tag `triton-tickets`, which is the host's label."""

    name = "ec2"
    # What it has ended goes on costing its storage.
    keeps_storage = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        """
        Raises:
            Refused: the options are not those of `Ec2Options`, or boto3 is not installed.
        """
        try:
            self._options = Ec2Options.model_validate(dict(options))
        except ValidationError as error:
            raise base.Refused(f"The settings of the provider ec2 cannot be used: {_problems(error)}.") from None
        self._named = {each.id: each for each in self._options.instances}
        self._thread = ThreadPoolExecutor(1, "ec2")
        self._client = _client(self._options.region)

    async def offers(self, query: Query) -> Sequence[base.Offer]:
        free = [id_ for id_, found in (await self._look()).items() if found["State"]["Name"] == "stopped"]
        return fitting([_offer(self._named[id_]) for id_ in free], query)

    async def create(self, offer: base.Offer, label: str, definition: InstanceDefinition) -> str:
        found = (await self._look()).get(offer.id)
        if found is None or found["State"]["Name"] != "stopped":
            state = "is not there" if found is None else f"is {found['State']['Name']}"
            raise base.OfferGone(f"The instance {offer.id} {state}: only a stopped one can be started.")
        await self._call("create_tags", Resources=[offer.id], Tags=[{"Key": TAG, "Value": label}])
        try:
            await self._call("start_instances", InstanceIds=[offer.id])
        except _Unclear as error:
            raise base.Doubtful(str(error)) from None
        return offer.id

    async def list(self, label_prefix: str, known: Collection[str] = ()) -> Sequence[base.Rented]:
        there = (await self._look(known)).values()
        hosts = [self._rented(found) for found in there if found["State"]["Name"] in STATES]
        return [host for host in hosts if host.label.startswith(label_prefix) or (host.id in known and host.label)]

    async def destroy(self, ident: str) -> None:
        if ident in await self._look([ident]):
            await self._call("stop_instances", InstanceIds=[ident])

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _look(self, known: Collection[str] = ()) -> Mapping[str, Mapping[str, Any]]:
        """The instances that are named here, and those in `known`, which may have been; by id, as far as they exist."""
        # A filter, because elsewhere an id that does not exist is an error.
        ids = sorted({*self._named, *known})
        answer = await self._call("describe_instances", Filters=[{"Name": "instance-id", "Values": ids}])
        return {found["InstanceId"]: found for group in answer["Reservations"] for found in group["Instances"]}

    def _rented(self, found: Mapping[str, Any]) -> base.Rented:
        named = self._named.get(found["InstanceId"]) or Ec2Instance(id=found["InstanceId"], price=0)
        at = found.get("PublicIpAddress" if self._options.address == "public" else "PrivateIpAddress")
        return base.Rented(
            id=named.id,
            label=next((tag["Value"] for tag in found.get("Tags", ()) if tag["Key"] == TAG), ""),
            state=STATES[found["State"]["Name"]],
            detail=found["State"]["Name"],
            machine=named.id,
            price=named.price,
            address=base.Address(f"ec2-{named.id}", ((at, 22),), self._options.user) if at else None,
            gpu=named.gpu,
            gpus=named.gpus,
            started_at=found["LaunchTime"].timestamp(),
        )

    async def _call(self, what: str, **arguments: Any) -> Any:
        def call() -> Any:
            with _translated(what):
                return getattr(self._client, what)(**arguments)

        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


class _Unclear(base.Unavailable):
    """Whether it was done is not known."""


def _client(region: str) -> Any:
    # Half a second of import, and megabytes, that only those pay for who have such a pool.
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise base.Refused("The provider ec2 needs boto3: `pip install boto3`, or the image `capacity`.") from None
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS)
    try:
        return boto3.client("ec2", region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise base.Refused(f"AWS cannot be asked: {error}.") from None


@contextmanager
def _translated(what: str) -> Iterator[None]:
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        code, said = error.response["Error"].get("Code", ""), f"AWS answers {what}: {error}"
        if code in GONE:
            raise base.OfferGone(said) from None
        if code in BUSY or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            raise base.Unavailable(said) from None
        raise base.Refused(said) from None
    except (boto.ConnectTimeoutError, boto.EndpointConnectionError) as error:
        raise base.Unavailable(f"AWS cannot be reached: {error}.") from None
    except (boto.HTTPClientError, boto.ConnectionError) as error:
        raise _Unclear(f"The answer of AWS to {what} was lost: {error}.") from None
    except boto.BotoCoreError as error:
        raise base.Refused(f"AWS cannot be asked: {error}.") from None


def _offer(named: Ec2Instance) -> base.Offer:
    return base.Offer(
        id=named.id,
        machine=named.id,
        gpu=named.gpu,
        gpus=named.gpus,
        vram_gb=named.vram_gb,
        price=named.price,
        storage_price=named.storage_price,
    )


def _problems(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg']}" for each in found)
