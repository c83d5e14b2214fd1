import asyncio
import json
import os

# setup
import litellm  # reads OPENAI_BASE_URL and OPENAI_API_KEY

MODEL = "openai/demo"
# end of setup
from pydantic import BaseModel


class Dog(BaseModel):
    name: str
    age: int


PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = {"name": "weather", "description": "The weather of a place", "parameters": PARAMETERS}
HELLO = [{"role": "user", "content": "What is the capital of France?"}]

answer = litellm.completion(MODEL, HELLO, temperature=0, max_tokens=30)
assert "Paris" in answer.choices[0].message.content
print("passed: chat")

chunks = list(litellm.completion(MODEL, HELLO, temperature=0, max_tokens=30, stream=True))
whole = litellm.stream_chunk_builder(chunks, messages=HELLO)
assert whole.choices[0].message.content == answer.choices[0].message.content
print("passed: stream")

messages = [{"role": "user", "content": os.environ["ASK_WEATHER"]}]
tools = [{"type": "function", "function": WEATHER}]
message = litellm.completion("openai/chat", messages, tools=tools).choices[0].message
(call,) = message.tool_calls
assert json.loads(call.function.arguments) == {"place": "Paris"}
messages += [message, {"role": "tool", "tool_call_id": call.id, "content": os.environ["WEATHER"]}]
after = litellm.completion("openai/chat", messages, tools=tools)
assert after.choices[0].message.content == "It is sunny in Paris."
print("passed: tools")

dog = litellm.completion(MODEL, [{"role": "user", "content": "Invent a dog."}], response_format=Dog)
Dog.model_validate_json(dog.choices[0].message.content)
print("passed: structured output")

vectors = litellm.embedding("openai/minilm", input=["a lamp", "a light"]).data
assert [len(each["embedding"]) for each in vectors] == [384, 384]
print("passed: embeddings")

answer = litellm.responses(model=MODEL, input="Hello.", max_output_tokens=20)
assert answer.output[0].content[0].text
print("passed: responses")

try:
    litellm.completion(MODEL, [{"role": "user", "content": "word " * 9000}])
except litellm.ContextWindowExceededError:
    print("passed: overflow")


async def several():
    return await asyncio.gather(*(litellm.acompletion(MODEL, HELLO, max_tokens=5) for _ in range(5)))


assert len(asyncio.run(several())) == 5
print("passed: async")
