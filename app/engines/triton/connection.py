"""The gRPC connection to one Triton server: calls, and streams of their own for requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
from tritonclient.grpc import InferResult
from tritonclient.grpc import aio as triton

from app.engines.base import RETRY, EngineError
from app.engines.triton.faults import MAX_MESSAGE_BYTES, classify_rpc, classify_text
from app.engines.triton.tensors import is_final
from app.telemetry.tracing import outgoing

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A server that comes back is found within a second or two, not after two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    # This is also the time a connection may take to be made; a host on another continent needs a second.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # An address that moved, as a restarted container's does, is asked for again soon.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # Connections of two clients to one address stay apart.
    ("grpc.use_local_subchannel_pool", 1),
    # Through a tunnel or a NAT, an idle connection that died is noticed.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]


def channel_options(connect_timeout: float | None = None) -> list[tuple[str, int]]:
    """Of a connection that may take so many seconds to be made."""
    if connect_timeout is None:
        return CHANNEL_OPTIONS
    return list((dict(CHANNEL_OPTIONS) | {"grpc.min_reconnect_backoff_ms": round(connect_timeout * 1000)}).items())


# A server that has sent its last message ends the stream within milliseconds, under load within a tenth of a second.
LAST_READ_SECONDS = 2.0


class Connection:
    """To the address `host:port`; `calls` are Triton's own."""

    def __init__(self, address: str, connect_timeout: float | None = None) -> None:
        self._address = address
        self._options = channel_options(connect_timeout)
        self.calls = self._connect()
        self._ending: set[asyncio.Task[None]] = set()

    def _connect(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self._address, channel_args=self._options)

    async def close(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)
        await self.calls.close()

    async def reconnect(self) -> None:
        """Starts over with a new channel: the old one may sit out a backoff of minutes after failed look-ups.

        Whatever is in flight on the old channel is lost.
        """
        old, self.calls = self.calls, self._connect()
        await old.close()

    async def messages(
        self,
        request: dict[str, Any],
        idle_timeout: float | None,
        run_timeout: float,
        first_timeout: float | None = None,
        classify: Callable[[str], EngineError] = classify_text,
        *,
        may_end: bool = False,
    ) -> AsyncGenerator[InferResult]:
        """The messages of one request on a stream of its own, which is cancelled when the iterator is closed early.

        The first one may take `first_timeout`, where it is given; without `idle_timeout` only the whole is bounded.
        `classify` makes an error of a text that came instead
        of a message. With `may_end`, the end of the stream is that of the messages: a decoupled model may be done
        without a last one, and then Triton ends the stream in good order.

        Raises:
            EngineError: an error instead of a message, or the end of the stream.
        """

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield request

        stream = self.calls.stream_infer(requests(), stream_timeout=run_timeout, headers=outgoing() or None)
        said_all = False
        patience = first_timeout or idle_timeout
        try:
            while True:
                try:
                    async with asyncio.timeout(patience):
                        result, error = await anext(stream)
                except StopAsyncIteration:
                    if may_end:
                        said_all = True
                        return
                    raise EngineError(
                        "stream_ended", "The server ended the stream before the answer was complete.", RETRY
                    ) from None
                except TimeoutError:
                    raise EngineError(
                        "idle_timeout",
                        f"The engine sent nothing for {patience:g} seconds.",
                        RETRY,
                        server_fault=True,
                    ) from None
                except grpc.aio.AioRpcError as failed:
                    raise classify_rpc(failed.code(), failed.details() or "") from None
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise
                    # An error inside the request iterator shows up as a cancel nobody asked for.
                    raise EngineError("request_not_sent", "The request could not be put on the wire.", RETRY) from None
                patience = idle_timeout
                said_all = error is not None or is_final(result)
                if error is not None:
                    raise classify(error.message() or "")
                yield result
        finally:
            if said_all:
                self._end(stream)
            else:
                stream.cancel()

    def _end(self, stream: Any) -> None:
        """Reads a stream whose last message has come to its end, while its caller goes on.

        A cancel at this moment makes Triton keep the request for ever: its model does not unload, and the server does
        not stop, until their time-outs.
        """
        task = asyncio.create_task(_read_to_end(stream))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def _read_to_end(stream: Any) -> None:
    try:
        async with asyncio.timeout(LAST_READ_SECONDS):
            async for _ in stream:
                pass
    except (TimeoutError, grpc.aio.AioRpcError):
        pass
    finally:
        stream.cancel()
