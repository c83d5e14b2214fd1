import os

# setup
from anthropic import Anthropic

client = Anthropic(base_url=os.environ["OPENAI_BASE_URL"].removesuffix("/v1"), api_key=os.environ["OPENAI_API_KEY"])
# end of setup
HELLO = {
    "max_tokens": 30,
    "extra_body": {"temperature": 0},
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
TOOLS = [{"name": "weather", "description": "The weather of a place", "input_schema": PARAMETERS}]

assert {"demo", "chat"} <= {each.id for each in client.models.list()}
print("passed: models")

answer = client.messages.create(model="demo", **HELLO)
assert "Paris" in answer.content[0].text
print("passed: chat")

with client.messages.stream(model="demo", **HELLO) as stream:
    assert "".join(stream.text_stream) == answer.content[0].text
    assert stream.get_final_message().usage.output_tokens == answer.usage.output_tokens
print("passed: stream")

messages = [{"role": "user", "content": os.environ["ASK_WEATHER"]}]
asked = client.messages.create(model="chat", max_tokens=200, messages=messages, tools=TOOLS)
(call,) = (each for each in asked.content if each.type == "tool_use")
assert (asked.stop_reason, call.input) == ("tool_use", {"place": "Paris"})
result = {"type": "tool_result", "tool_use_id": call.id, "content": os.environ["WEATHER"]}
messages += [{"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
after = client.messages.create(model="chat", max_tokens=200, messages=messages, tools=TOOLS)
assert after.content[0].text == "It is sunny in Paris."
print("passed: tools")
