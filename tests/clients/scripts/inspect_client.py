import os

# setup
from inspect_ai.model import get_model

model = get_model("openai/demo")  # reads OPENAI_BASE_URL and OPENAI_API_KEY
# end of setup
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ResponseSchema
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool
from inspect_ai.util import json_schema
from pydantic import BaseModel


class Dog(BaseModel):
    name: str
    age: int


@tool
def weather():
    async def execute(place: str) -> str:
        """The weather of a place.

        Args:
            place: where
        """
        return os.environ["WEATHER"]

    return execute


def accuracy(model, sample: Sample, *solvers, **options) -> float:
    task = Task(dataset=[sample], solver=[*solvers, generate()], scorer=includes(), config=GenerateConfig(**options))
    (log,) = eval(task, model=model, display="none", log_dir="logs")
    assert log.status == "success", log.error
    return log.results.scores[0].metrics["accuracy"].value


capital = Sample(input="What is the capital of France?", target="Paris")
assert accuracy(model, capital, temperature=0, max_tokens=40) == 1
print("passed: chat")

chat = get_model("openai-api/openai/demo", base_url=os.environ["OPENAI_BASE_URL"])
assert accuracy(chat, capital, temperature=0, max_tokens=40) == 1
print("passed: chat completions")

asked = Sample(input=os.environ["ASK_WEATHER"], target="It is sunny in Paris.")
assert accuracy("openai/chat", asked, use_tools(weather())) == 1
print("passed: tools")

schema = ResponseSchema(name="dog", json_schema=json_schema(Dog))
assert accuracy(model, Sample(input="Invent a dog.", target="age"), response_schema=schema) == 1
print("passed: structured output")
