"""How gRPC waits for messages."""

import os
import subprocess
import sys

CONNECT = """
import asyncio
from app.engines.triton.connection import Connection

async def main():
    await Connection("127.0.0.1:1").close()

asyncio.run(main())
"""


def polled(**environment: str) -> str:
    """What gRPC writes in a process that makes a connection."""
    given = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    ended = subprocess.run([sys.executable, "-c", CONNECT], env=given | environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_grpc_knows_the_switch_that_turns_its_event_engine_off() -> None:
    """A release without it would poll with two threads again, and say this."""
    assert "nknown experiment" not in polled()
    assert "nknown experiment" in polled(GRPC_EXPERIMENTS="-no_such_engine")
