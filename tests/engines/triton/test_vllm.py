"""The tensors of one request."""

from app.engines.triton.vllm import encode


def test_structured_outputs_travel_as_text_inside_the_json() -> None:
    inputs = {tensor.name(): tensor for tensor in encode("p", {"structured_outputs": {"json": {"type": "object"}}})}
    sent = inputs["sampling_parameters"]._get_content()[4:]
    assert sent == rb'{"structured_outputs":"{\"json\":{\"type\":\"object\"}}"}'
