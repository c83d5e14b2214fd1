"""One command for each make target. Their options come from the environment, where make puts its variables."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.table import Table

from nvidia_triton.vast import (
    costs,
    deploy,
    gpu,
    instances,
    monitor,
    offers,
    preflight,
    remote,
    ssh,
    startup,
    tunnel,
    wiring,
)
from nvidia_triton.vast.context import Context, Instance
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.progress import PrintedWork
from nvidia_triton.vast.vast import VastClient

INTERRUPTED = 130
PLAIN_WIDTH = 160
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


class Interrupted(Exception):
    """Ctrl-C, or a signal that asks to end."""


class Targets(typer.core.TyperGroup):
    """Its commands; typer would make a mere exit code of an interruption."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


app = typer.Typer(cls=Targets, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

Contract = Annotated[str, typer.Option(envvar="CONTRACT_ID", help="which instance; may be left out if there is one")]
Models = Annotated[str, typer.Option(envvar="MODELS", help="folders of models/, separated by spaces")]
MaxPrice = Annotated[str, typer.Option(envvar="MAX_PRICE", help="dollars an hour, instead of the definition's")]


@app.command()
def search_instance(max_price: MaxPrice = "") -> None:
    """Offers that fit the definition, the cheapest first."""
    context = _open()
    found = offers.search(VastClient(context.settings), context.definition.offer_query(_price(max_price)))
    _console.print(offers.table(found, f"{len(found)} offers for {context.definition.image.tag}"))
    context.work.say(f"Rent one with `make create-instance INSTANCE_ID={found[0]['id']}`.")


@app.command()
def create_instance(offer: Annotated[str, typer.Option(envvar="INSTANCE_ID", help="the offer's id")] = "") -> None:
    """Rents an offer and waits until SSH answers."""
    if not offer.isdecimal():
        raise TargetError(
            f"INSTANCE_ID={offer} is not the id of an offer: `make search-instance` shows offers, then "
            "`make create-instance INSTANCE_ID=<offer id>`."
        )
    context = _open()
    preflight.check_access(context)
    client = VastClient(context.settings)
    with context.state.locked("gpu", busy=gpu.BUSY), instances.naming_what_costs(context):
        ident = instances.create(context, client, int(offer))
        context.work.say(f"CONTRACT_ID={ident}")
        instance = startup.wait_until_ready(context, client, ident)
    context.work.done("instance", f"CONTRACT_ID={ident}: {costs.summary(instance)}")
    context.work.say(f"Next: `make run-tritonserver CONTRACT_ID={ident}`.")


@app.command()
def list_instances() -> None:
    """Instances with this project's label, and what they have cost so far."""
    context = _open(needs_definition=False)
    ours = instances.find(context, VastClient(context.settings))
    table = Table()
    for name in ("CONTRACT_ID", "state", "GPU", "$/h", "$ so far", "label", "rented by"):
        table.add_column(name, justify="right" if "$" in name else "left", no_wrap=True)
    for each in (*ours.here, *ours.elsewhere):
        table.add_row(
            str(each.id),
            costs.state_of(each),
            f"{each.num_gpus}x {each.gpu_name}",
            f"{each.hourly:.3f}" if each.hourly else "?",
            costs.spent_on(each),
            each.label,
            "this checkout" if each in ours.here else "unknown here",
        )
    unanswered = instances.unanswered(context)
    if table.row_count:
        _console.print(table)
    elif not unanswered:
        context.work.say("No instance of this project is rented.")
    for sentence in unanswered:
        context.work.say(sentence)


@app.command()
def ssh_instance(contract: Contract = "") -> None:
    """Opens a shell on the instance."""
    context, _, instance = _instance(contract)
    raise typer.Exit(ssh.interactive(context, instance))


@app.command()
def run_tritonserver(
    contract: Contract = "", restart: Annotated[bool, typer.Option(envvar="RESTART", help="stop it first")] = False
) -> None:
    """Starts Triton on the instance unless it serves."""
    context, _, instance = _instance(contract)
    remote.run_tritonserver(context, instance, restart=restart)


@app.command()
def deploy_models_tritonserver(contract: Contract = "", models: Models = "") -> None:
    """Sends the models and has Triton load them."""
    context, _, instance = _instance(contract)
    deploy.deploy(context, instance, _models(context, models))


@app.command()
def ssh_tunnels_tritonserver(contract: Contract = "") -> None:
    """Starts the tunnel to the instance; it stays in the background and reconnects."""
    context, _, instance = _instance(contract)
    link = tunnel.start(context, instance)
    context.work.say(
        f"{instance.name} is at 127.0.0.1: {link.http_port} HTTP, {link.grpc_port} gRPC, {link.metrics_port} metrics. "
        "The service uses it by itself; `make stop-tunnels` ends it.",
    )


@app.command()
def stop_tunnels(contract: Contract = "") -> None:
    """Stops the tunnel to one instance, or all tunnels."""
    context = _open(needs_definition=False)
    stopped = tunnel.stop(context, _number(contract))
    context.work.say(f"Stopped: {', '.join(f'vast-{each}' for each in stopped)}" if stopped else "No tunnel runs.")


@app.command()
def check_health_tritonserver(contract: Contract = "") -> None:
    """Prints 1 when Triton and its models are well, else 0 and the reason."""
    healthy, reason = monitor.health(_open(needs_definition=False), _number(contract))
    print("1" if healthy else f"0\n{reason}")
    if not healthy:
        raise typer.Exit(1)


@app.command()
def check_logs_tritonserver(
    contract: Contract = "",
    follow: Annotated[bool, typer.Option(envvar="FOLLOW", help="go on until Ctrl-C")] = False,
    lines: Annotated[int, typer.Option(envvar="LOG_LINES", min=1)] = 100,
) -> None:
    """The last lines of Triton's log."""
    context, _, instance = _instance(contract)
    remote.logs(context, instance, follow, lines)


@app.command()
def check_model_stats_tritonserver(contract: Contract = "") -> None:
    """Requests, failures, times and tokens of each model."""
    context = _open(needs_definition=False)
    _console.print(monitor.model_stats(context, _number(contract)))


@app.command()
def stop_instance(contract: Contract = "") -> None:
    """Stops the instance; its disk stays, and costs a little."""
    context, client, instance = _instance(contract, needs_definition=False)
    gpu.stop_tunnel(context, instance)
    client.stop(instance.id)
    stopped = dataclasses.replace(instance, intended_status="stopped")
    instances.remember(context, stopped)
    context.work.done(
        "instance",
        f"{instance.id} stops. It goes on costing {costs.price_of(stopped)}: `make start-instance "
        f"CONTRACT_ID={instance.id}` starts it again, if its GPU is still free then; `make destroy-instance "
        f"CONTRACT_ID={instance.id}` ends the bill.",
    )


@app.command()
def start_instance(contract: Contract = "") -> None:
    """Starts a stopped instance and waits until SSH answers."""
    context, client, instance = _instance(contract)
    with instances.naming_what_costs(context):
        client.start(instance.id)
        instance = startup.wait_until_ready(context, client, instance.id, restarted=True)
    context.work.done("instance", f"CONTRACT_ID={instance.id}: {costs.summary(instance)}")
    context.work.say("Next: `make gpu-up` starts Triton, the models and the tunnel again.")


@app.command()
def destroy_instance(contract: Contract = "") -> None:
    """Ends the instance, its disk and its bill."""
    context, client, instance = _instance(contract, needs_definition=False)
    gpu.take_down(context, client, instance)


@app.command()
def gpu_up(contract: Contract = "", models: Models = "", max_price: MaxPrice = "") -> None:
    """Rents a GPU, sets it up and answers a first ticket; goes on where an earlier call ended."""
    context = _open()
    with instances.naming_what_costs(context):
        gpu.up(context, contract or None, _models(context, models), _price(max_price))


@app.command()
def gpu_down(contract: Contract = "") -> None:
    """Ends the tunnel, the instance and what gpu-up started here."""
    gpu.down(_open(needs_definition=False), contract or None)


def main() -> int:
    """Runs a command; an expected failure is one sentence on stderr and the exit code 1."""
    for number in ENDING:
        signal.signal(number, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except TargetError as error:
        return _fail(str(error))
    except (Interrupted, KeyboardInterrupt):
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        return _fail(f"Interrupted. {_left_running()}".strip(), INTERRUPTED)
    except typer.Exit as end:
        return end.exit_code
    except (SystemExit, BrokenPipeError):
        # Whoever read the output has gone: `make gpu-up | head`.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        return _fail(f"Nobody reads the output any more, so this ended. {_left_running()}".strip())
    except Exception as error:
        # Click's own: a flag that is no such flag.
        if (show := getattr(error, "show", None)) is None:
            return _fail(_defect(error))
        show()
        return 2
    return code if isinstance(code, int) else 0


def _defect(error: Exception) -> str:
    """Keeps the trace of what nobody foresaw, and says where; what is rented is named."""
    what = f"This failed in a way that nobody foresaw ({type(error).__name__})"
    try:
        context = _open(needs_definition=False)
        trace = context.state.prepare().file("error.log")
        trace.write_text(context.settings.redact("".join(traceback.format_exception(error))))
        what += f"; the details are in {os.path.relpath(trace)}."
    except (TargetError, OSError):
        what += f": {error.strerror}." if isinstance(error, OSError) else "."
    return f"{what} {_left_running()}".strip()


def _left_running() -> str:
    try:
        return instances.left_running(_open(needs_definition=False))
    except (TargetError, OSError):
        return "`make list-instances` shows what is rented."


def _fail(text: str, code: int = 1) -> int:
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}{text}{plain}", file=sys.stderr, flush=True)
    return code


def _open(*, needs_definition: bool = True) -> Context:
    return wiring.open_context(needs_definition=needs_definition, work=PrintedWork(_console))


def _instance(contract: str, *, needs_definition: bool = True) -> tuple[Context, VastClient, Instance]:
    context = _open(needs_definition=needs_definition)
    client = VastClient(context.settings)
    return context, client, instances.resolve(context, client, contract or None)


def _models(context: Context, models: str) -> tuple[str, ...]:
    return tuple(models.split()) or context.definition.models


def _number(contract: str) -> int | None:
    if contract and not contract.isdecimal():
        raise TargetError(
            f"CONTRACT_ID={contract} is not a contract id, which is a number: `make list-instances` shows them."
        )
    return int(contract) if contract else None


def _price(text: str) -> float | None:
    try:
        price = float(text) if text else None
    except ValueError:
        price = -1.0
    if price is not None and not 0 < price < 1000:
        raise TargetError(f"MAX_PRICE={text} is not a price: give dollars an hour, for example MAX_PRICE=0.80.")
    return price
