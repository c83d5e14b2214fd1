"""What a start says while it takes long, and what it tells its user to try."""

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path

from tests.local.conftest import Checkout, Runner, wait_for
from tests.servers import RunningTriton

SLOW_API = """
import http.server, os, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if pathlib.Path("go").exists() else 503)
        self.end_headers()
http.server.ThreadingHTTPServer((os.environ["API_HOST"], int(os.environ["API_PORT"])), Handler).serve_forever()
"""


def lines_of(runner: Runner) -> list[str]:
    """The shell lines of its banner."""
    return [line for line in runner.output.splitlines() if line.startswith(("CONTEXT=", "RESULT=", "curl "))]


def test_a_slow_start_says_what_it_waits_for_and_goes_on(checkout: Checkout) -> None:
    (checkout.path / "app/main.py").write_text(SLOW_API)
    runner = checkout.run()
    wait_for(lambda: "The API starts, for 10 s so far" in runner.output, "no word of progress")
    assert "Ready after" not in runner.output
    (checkout.path / "go").touch()
    runner.ready()


def test_what_ends_during_a_slow_start_ends_the_start(checkout: Checkout) -> None:
    (checkout.path / "app/main.py").write_text(SLOW_API)
    runner = checkout.run()
    wait_for(lambda: "The API starts, for" in runner.output, "no word of progress")
    os.kill(runner.pid_of("app.main"), signal.SIGTERM)
    assert runner.exit_code() == 1
    assert "api stopped on its own" in runner.output.splitlines()[-1]


async def test_servers_of_ones_own_are_tried_with_a_model_that_they_have(
    full_checkout: Checkout, triton: RunningTriton
) -> None:
    runner = await asyncio.to_thread(full_checkout.make("run", TRITON_URLS=triton.grpc_url).ready)
    lines = lines_of(runner)
    assert lines, runner.output
    assert "/models/send/lora/" in lines[1]
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-euc", "\n".join(lines)], capture_output=True, text=True, timeout=60, check=False
    )
    assert json.loads(done.stdout)["status"] == "completed", done.stderr
    demo = full_checkout.make("demo", TRITON_URLS=triton.grpc_url)
    assert await asyncio.to_thread(demo.exit_code) == 0, demo.output
    assert "lora: completed" in demo.output


def test_servers_that_do_not_answer_are_said_to_have_no_model(full_checkout: Checkout) -> None:
    runner = full_checkout.make("run", TRITON_URLS="127.0.0.1:1").ready()
    assert lines_of(runner) == []
    assert f"curl -sS http://127.0.0.1:{full_checkout.env['API_PORT']}/models/` lists them" in runner.output
    demo = full_checkout.make("demo", TRITON_URLS="127.0.0.1:1")
    assert demo.exit_code() != 0
    assert "No server that answers has a model yet" in demo.output


def test_where_a_key_is_needed_the_banner_says_so(full_checkout: Checkout) -> None:
    runner = full_checkout.make("run", TRITON_URLS="127.0.0.1:1", AUTH_REQUIRED="true").ready()
    assert "/console/" in next(line for line in runner.output.splitlines() if line.startswith("  Console "))
    assert "Requests need an API key: `make key NAME=me` prints one" in runner.output
    assert lines_of(runner) == []
    assert (Path(__file__).parents[2] / "docs/keys.md").exists()
