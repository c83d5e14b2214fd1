import json
import os

# setup
from openai import OpenAI

client = OpenAI()  # reads OPENAI_BASE_URL and OPENAI_API_KEY
MODEL = "demo"
# end of setup
from pydantic import BaseModel


class Dog(BaseModel):
    name: str
    age: int


PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = {"name": "weather", "description": "The weather of a place", "parameters": PARAMETERS}
HELLO = [{"role": "user", "content": "What is the capital of France?"}]

assert {"demo", "minilm", "chat"} <= {each.id for each in client.models.list()}
assert client.models.retrieve(MODEL).id == MODEL
print("passed: models")

answer = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=30)
assert "Paris" in answer.choices[0].message.content
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
print("passed: chat")

with client.chat.completions.stream(model=MODEL, messages=HELLO, temperature=0, max_tokens=30) as stream:
    text = "".join(event.delta for event in stream if event.type == "content.delta")
    assert stream.get_final_completion().choices[0].message.content == text
assert text == answer.choices[0].message.content
print("passed: stream")

messages = [{"role": "user", "content": os.environ["ASK_WEATHER"]}]
tools = [{"type": "function", "function": WEATHER}]
message = client.chat.completions.create(model="chat", messages=messages, tools=tools).choices[0].message
(call,) = message.tool_calls
assert json.loads(call.function.arguments) == {"place": "Paris"}
messages += [message, {"role": "tool", "tool_call_id": call.id, "content": os.environ["WEATHER"]}]
after = client.chat.completions.create(model="chat", messages=messages, tools=tools)
assert after.choices[0].message.content == "It is sunny in Paris."
print("passed: tools")

dog = client.chat.completions.parse(
    model=MODEL, messages=[{"role": "user", "content": "Invent a dog."}], response_format=Dog
)
assert isinstance(dog.choices[0].message.parsed, Dog)
print("passed: structured output")

vectors = [each.embedding for each in client.embeddings.create(model="minilm", input=["a lamp", "a light"]).data]
assert [len(each) for each in vectors] == [384, 384]
print("passed: embeddings")

first = client.responses.create(model=MODEL, input="What is the capital of France?", max_output_tokens=30)
second = client.responses.create(
    model=MODEL, input="And of Spain?", previous_response_id=first.id, max_output_tokens=30
)
assert second.status in ("completed", "incomplete")
with client.responses.stream(model=MODEL, input="What is the capital of France?", temperature=0) as stream:
    text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert stream.get_final_response().output_text == text
tool = {"type": "function", "strict": False, **WEATHER}
asked = client.responses.create(model="chat", input=os.environ["ASK_WEATHER"], tools=[tool])
(call,) = (each for each in asked.output if each.type == "function_call")
result = {"type": "function_call_output", "call_id": call.call_id, "output": os.environ["WEATHER"]}
after = client.responses.create(model="chat", input=[result], previous_response_id=asked.id, tools=[tool])
assert after.output_text == "It is sunny in Paris."
parsed = client.responses.parse(model=MODEL, input="Invent a dog.", text_format=Dog)
assert isinstance(parsed.output_parsed, Dog)
print("passed: responses")

lines = [
    {
        "custom_id": str(number),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": MODEL, "messages": HELLO, "max_tokens": 5},
    }
    for number in range(3)
]
file = client.files.create(file=("lines.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status in ("validating", "in_progress", "finalizing"):
    batch = client.batches.retrieve(batch.id)
assert (batch.status, batch.request_counts.completed) == ("completed", 3)
assert len(client.files.content(batch.output_file_id).text.splitlines()) == 3
print("passed: batches")
