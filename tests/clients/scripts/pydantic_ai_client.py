import asyncio
import os

# setup
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

agent = Agent(OpenAIChatModel("demo"))  # reads OPENAI_BASE_URL and OPENAI_API_KEY
# end of setup
from pydantic import BaseModel
from pydantic_ai import Embedder, NativeOutput


class Dog(BaseModel):
    name: str
    age: int


class Weather(BaseModel):
    place: str
    degrees: int


def weather(place: str) -> str:
    """The weather of a place."""
    return os.environ["WEATHER"]


async def stream() -> str:
    async with agent.run_stream(QUESTION, model_settings=SHORT) as run:
        return "".join([text async for text in run.stream_text(delta=True)])


QUESTION = "What is the capital of France?"
SHORT = {"temperature": 0, "max_tokens": 60}

first = agent.run_sync(QUESTION, model_settings=SHORT)
assert "Paris" in first.output
assert agent.run_sync("And of Spain?", message_history=first.all_messages(), model_settings=SHORT).output
print("passed: chat")

assert asyncio.run(stream()) == first.output
print("passed: stream")

for model in (OpenAIChatModel, OpenAIResponsesModel):
    told = Agent(model("chat"), tools=[weather]).run_sync(os.environ["ASK_WEATHER"])
    assert told.output == "It is sunny in Paris."
print("passed: tools")

for output in (Dog, NativeOutput(Dog)):
    assert isinstance(Agent(OpenAIChatModel("demo"), output_type=output).run_sync("Invent a dog.").output, Dog)
print("passed: structured output")

typed = Agent(OpenAIChatModel("chat"), output_type=NativeOutput(Weather))


@typed.tool_plain(name="weather")
def weather_typed(place: str) -> str:
    """The weather of a place."""
    return os.environ["WEATHER_TYPED"]


assert typed.run_sync(os.environ["ASK_WEATHER"]).output == Weather(place="Paris", degrees=21)
print("passed: structured output with tools")

vectors = Embedder("openai:minilm").embed_documents_sync(["a lamp", "a light"]).embeddings
assert [len(each) for each in vectors] == [384, 384]
print("passed: embeddings")

assert Agent(OpenAIResponsesModel("demo")).run_sync("Hello.", model_settings=SHORT).output
print("passed: responses")
