"""A client that asks as plainly as possible, so that tests see what is on the wire."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton

RETURNED = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")


@dataclass
class Message:
    text: list[str]
    final: bool
    id: str
    outputs: dict[str, np.ndarray[Any, Any]]

    def strings(self, name: str) -> list[str]:
        return [each.decode() for each in self.outputs[name]]


class Client:
    """Sends one request per stream."""

    def __init__(self, grpc: triton.InferenceServerClient) -> None:
        self.grpc = grpc

    def stream(
        self,
        model: str,
        prompt: str | bytes,
        *,
        stream: bool | None = None,
        exclude: bool | None = True,
        returned: tuple[str, ...] = RETURNED,
        sampling: dict[str, Any] | str | None = None,
        more: dict[str, tuple[Any, str]] | None = None,
        deadline: float | None = None,
        **request: Any,
    ) -> Any:
        """Start a request, text in `sampling` as it stands; returns tritonclient's iterator."""
        values: dict[str, tuple[Any, str]] = {
            "text_input": (prompt.encode() if isinstance(prompt, str) else prompt, "BYTES")
        }
        if stream is not None:
            values["stream"] = (stream, "BOOL")
        if exclude is not None:
            values["exclude_input_in_output"] = (exclude, "BOOL")
        if sampling is not None:
            text = sampling if isinstance(sampling, str) else json.dumps(sampling)
            values["sampling_parameters"] = (text.encode(), "BYTES")
        values |= {f"return_{name}": (True, "BOOL") for name in returned}
        values |= more or {}
        inputs = [_tensor(name, value, dtype) for name, (value, dtype) in values.items()]

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model, "inputs": inputs, **request}

        return self.grpc.stream_infer(requests(), stream_timeout=deadline)

    async def ask(self, model: str, prompt: str | bytes, **options: Any) -> list[Message]:
        """All messages of a request; raises what came in the place of one."""
        messages = []
        async for result, error in self.stream(model, prompt, **options):
            if error is not None:
                raise error
            messages.append(read(result))
        return messages

    async def error(self, model: str, prompt: str | bytes, **options: Any) -> str:
        """The text of the one error this request ends with."""
        pairs = [pair async for pair in self.stream(model, prompt, **options)]
        [(result, error)] = pairs
        assert result is None
        assert error.status() is None
        return str(error.message())


def _tensor(name: str, value: Any, dtype: str) -> triton.InferInput:
    kinds = {"BYTES": np.object_, "BOOL": np.bool_, "INT32": np.int32}
    array: np.ndarray[Any, Any] = np.array(value if isinstance(value, list) else [value], dtype=kinds[dtype])
    tensor = triton.InferInput(name, list(array.shape), dtype)
    tensor.set_data_from_numpy(array)
    return tensor


def read(result: Any) -> Message:
    response = result.get_response()
    outputs = {each.name: result.as_numpy(each.name) for each in response.outputs}
    return Message(
        text=[each.decode() for each in outputs["text_output"]],
        final=response.parameters["triton_final_response"].bool_param,
        id=response.id,
        outputs=outputs,
    )
