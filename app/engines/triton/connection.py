"""The gRPC connection to one Triton server: calls, and streams of their own for requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
from tritonclient.grpc import aio as triton
from tritonclient.grpc import service_pb2

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


# One request goes to each stream, so that it can be cancelled alone. To send it as the only message of a call takes
# fewer steps than a stream of requests does, and to read the only message of its answer fewer yet.
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
# A server that has sent its last message ends the stream within milliseconds, under load within a tenth of a second.
LAST_READ_SECONDS = 2.0


class Connection:
    """To the address `host:port`: `calls` ask for the server's state, and requests have a channel of their own."""

    def __init__(self, address: str, connect_timeout: float | None = None) -> None:
        self._address = address
        self._options = channel_options(connect_timeout)
        self._connect()
        self._ending: set[asyncio.Task[None]] = set()

    def _connect(self) -> None:
        self.calls = triton.InferenceServerClient(self._address, channel_args=self._options)
        self._channel = grpc.aio.insecure_channel(self._address, self._options)
        encoded = service_pb2.ModelInferRequest.SerializeToString
        decoded = service_pb2.ModelStreamInferResponse.FromString
        self._ask_all = self._channel.unary_stream(STREAM, encoded, decoded)
        self._ask_one = self._channel.unary_unary(STREAM, encoded, decoded)

    async def close(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)
        await self.calls.close()
        await self._channel.close()

    async def reconnect(self) -> None:
        """Starts over with new channels: the old ones may sit out a backoff of minutes after failed look-ups.

        Whatever is in flight on them is lost.
        """
        calls, channel = self.calls, self._channel
        self._connect()
        await calls.close()
        await channel.close()

    async def only_message(
        self, request: service_pb2.ModelInferRequest, run_timeout: float
    ) -> service_pb2.ModelInferResponse:
        """The answer of a model that sends one message; a second one is waited for until `run_timeout` is over.

        Raises:
            EngineError: as `messages` does.
        """
        call = self._ask_one(request, timeout=run_timeout, metadata=tuple(outgoing().items()) or None)
        message = await _told(call)
        if message.error_message:
            raise classify_text(message.error_message)
        return message.infer_response

    async def messages(
        self,
        request: service_pb2.ModelInferRequest,
        idle_timeout: float | None,
        run_timeout: float,
        first_timeout: float | None = None,
        classify: Callable[[str], EngineError] = classify_text,
        *,
        may_end: bool = False,
    ) -> AsyncGenerator[service_pb2.ModelInferResponse]:
        """The messages of one request on a stream of its own, which is cancelled when the iterator is closed early.

        The first one may take `first_timeout`, where it is given; without `idle_timeout` only the whole is bounded.
        `classify` makes an error of a text that came instead
        of a message. With `may_end`, the end of the stream is that of the messages: a decoupled model may be done
        without a last one, and then Triton ends the stream in good order.

        Raises:
            EngineError: an error instead of a message, or the end of the stream.
        """

        stream = self._ask_all(request, timeout=run_timeout, metadata=tuple(outgoing().items()) or None)
        watch = _Watch(stream)
        said_all = False
        last: service_pb2.ModelInferResponse | None = None
        try:
            watch.wait(first_timeout or idle_timeout)
            while True:
                message = await _told(stream.read(), watch)
                if message is grpc.aio.EOF:
                    if may_end:
                        said_all = True
                        return
                    raise EngineError(
                        "stream_ended", "The server ended the stream before the answer was complete.", RETRY
                    )
                if message.error_message:
                    said_all = True
                    raise classify(message.error_message)
                last = message.infer_response
                yield last
                watch.wait(idle_timeout)
        finally:
            watch.end()
            if said_all or (last is not None and is_final(last)):
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


class _Watch:
    """Cancels a call whose next message is not there in time: one timer for all of its messages."""

    def __init__(self, stream: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        # Seconds; None where a message may take any time.
        self.patience: float | None = None
        self.over = False

    def wait(self, patience: float | None) -> None:
        """The next message is waited for from now on."""
        self._since = self._loop.time()
        if patience != self.patience or self._timer is None:
            self.patience = patience
            self.end()
            if patience is not None:
                self._timer = self._loop.call_later(patience, self._look)

    def _look(self) -> None:
        assert self.patience is not None
        due = self._since + self.patience
        if due > self._loop.time():
            self._timer = self._loop.call_at(due, self._look)
        else:
            self.over = True
            self._stream.cancel()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _told(step: Awaitable[Any], watch: _Watch | None = None) -> Any:
    """
    Raises:
        EngineError: the call failed, or took too long.
    """
    try:
        return await step
    except grpc.aio.AioRpcError as failed:
        raise classify_rpc(failed.code(), failed.details() or "") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        if watch is not None and watch.over:
            raise EngineError(
                "idle_timeout", f"The engine sent nothing for {watch.patience:g} seconds.", RETRY, server_fault=True
            ) from None
        # The channel was closed under it.
        raise EngineError("request_not_sent", "The request could not be put on the wire.", RETRY) from None


async def _read_to_end(stream: Any) -> None:
    try:
        async with asyncio.timeout(LAST_READ_SECONDS):
            while await stream.read() is not grpc.aio.EOF:
                pass
    except (TimeoutError, grpc.aio.AioRpcError):
        pass
    finally:
        stream.cancel()
