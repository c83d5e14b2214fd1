"""One request, and the messages of its answer, as they are on the wire."""

import struct

import pytest
from tritonclient.grpc import InferResult, service_pb2

from app.engines.triton.tensors import add_inputs, new_request, texts_content
from app.engines.triton.vllm import decode, encode


def message(final: bool = False, **outputs: tuple[str, bytes]) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse()
    for name, (datatype, raw) in outputs.items():
        response.outputs.add(name=name, datatype=datatype, shape=[1])
        response.raw_output_contents.append(raw)
    response.parameters["triton_final_response"].bool_param = final
    return response


def text(*values: str) -> tuple[str, bytes]:
    return "BYTES", b"".join(texts_content(value.encode()) for value in values)


def test_structured_outputs_travel_as_text_inside_the_json() -> None:
    request = encode("m", "id", "p", {"structured_outputs": {"json": {"type": "object"}}})
    sent = dict(zip((each.name for each in request.inputs), request.raw_input_contents, strict=True))
    assert sent["sampling_parameters"][4:] == rb'{"structured_outputs":"{\"json\":{\"type\":\"object\"}}"}'


def test_requests_of_one_model_have_nothing_of_each_other() -> None:
    first = encode("m", "one", "a long prompt", {"max_tokens": 1, "logprobs": 2}, stream=False)
    second = encode("m", "two", "p", {"max_tokens": 2}, stream=True)
    assert (first.id, second.id) == ("one", "two")
    assert first.raw_input_contents[0] == texts_content(b"a long prompt")
    assert second.raw_input_contents[0] == texts_content(b"p")
    flags = [dict(zip((i.name for i in r.inputs), r.raw_input_contents, strict=True)) for r in (first, second)]
    assert (flags[0]["stream"], flags[1]["stream"]) == (b"\x00", b"\x01")
    assert "return_logprobs" in flags[0]
    assert "return_logprobs" not in flags[1]


def test_a_message_is_read() -> None:
    chunk = decode(
        message(
            text_output=text("é"),
            finish_reason=text("None"),
            num_input_tokens=("UINT32", struct.pack("<I", 7)),
            num_output_tokens=("UINT32", struct.pack("<I", 3)),
            cumulative_logprob=("FP32", struct.pack("<f", float("nan"))),
        )
    )
    assert (chunk.texts, chunk.finish_reasons, chunk.size, chunk.final) == (["é"], [None], 2, False)
    assert (chunk.prompt_tokens, chunk.completion_tokens, chunk.cumulative_logprobs) == (7, [3], [None])
    last = decode(message(True, text_output=text("", "two"), finish_reason=text("stop", "length")))
    assert (last.texts, last.finish_reasons, last.final) == (["", "two"], ["stop", "length"], True)
    assert decode(message(True)).final


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"text_output": ("INT32", b"\x01\x00\x00\x00")},
        {"text_output": ("BYTES", b"\x09\x00\x00\x00short")},
        {"text_output": text("x"), "num_output_tokens": ("UINT32", b"\x01")},
        {"text_output": text("x"), "num_output_tokens": ("UINT32", b"")},
        {"text_output": text("x"), "num_output_tokens": text("many")},
    ],
)
def test_a_message_that_does_not_fit_the_contract_is_refused(outputs: dict[str, tuple[str, bytes]]) -> None:
    with pytest.raises(ValueError, match=r"text|number|BYTES"):
        decode(message(**outputs))


def test_tensors_are_on_the_wire_as_tritonclient_reads_them() -> None:
    tensors = [
        {"name": "f", "datatype": "FP32", "shape": [2, 2], "data": [1.5, -2, 3, 4]},
        {"name": "h", "datatype": "FP16", "shape": [2], "data": [0.5, 2]},
        {"name": "i", "datatype": "INT64", "shape": [2], "data": [-(2**62), 5]},
        {"name": "o", "datatype": "BOOL", "shape": [2], "data": [True, False]},
        {"name": "b", "datatype": "BF16", "shape": [2], "data": [1.0, -2.5]},
        {"name": "t", "datatype": "BYTES", "shape": [2, 1], "data": ["é", ""]},
    ]
    request = new_request("m", "id")
    add_inputs(request, tensors)
    assert [(each.name, each.datatype, list(each.shape)) for each in request.inputs] == [
        (each["name"], each["datatype"], each["shape"]) for each in tensors
    ]
    answer = service_pb2.ModelInferResponse()
    for each, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        answer.outputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        answer.raw_output_contents.append(raw)
    result = InferResult(answer)
    for each in tensors[:4]:
        assert result.as_numpy(str(each["name"])).reshape(-1).tolist() == each["data"]
    assert request.raw_input_contents[4] == b"\x80\x3f\x20\xc0"
    assert result.as_numpy("t").reshape(-1).tolist() == ["é".encode(), b""]
