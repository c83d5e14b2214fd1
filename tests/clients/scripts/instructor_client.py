# setup
import instructor
from openai import OpenAI

client = instructor.from_openai(OpenAI(), mode=instructor.Mode.JSON_SCHEMA)  # or TOOLS, its default
# end of setup
from collections.abc import Iterable

from pydantic import BaseModel


class Dog(BaseModel):
    name: str
    age: int


ASKED = {"model": "demo", "messages": [{"role": "user", "content": "Invent a dog."}]}

assert isinstance(client.create(response_model=Dog, **ASKED), Dog)
print("passed: structured output")

tools = instructor.from_openai(OpenAI())
dog, completion = tools.create_with_completion(response_model=Dog, **ASKED)
assert isinstance(dog, Dog)
assert completion.usage.total_tokens > 0
print("passed: tools")

*_, last = client.create_partial(response_model=Dog, **ASKED)
assert last.age is not None
*_, last = tools.create_partial(response_model=Dog, **ASKED)
assert last.age is not None
print("passed: stream")

responses = instructor.from_openai(OpenAI(), mode=instructor.Mode.RESPONSES_TOOLS)
assert isinstance(responses.create(response_model=Dog, **ASKED), Dog)
print("passed: responses")

assert all(isinstance(each, Dog) for each in client.create(response_model=Iterable[Dog], max_tokens=300, **ASKED))
print("passed: lists")
