import asyncio
import os

# setup
from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)  # traces go to OpenAI
agent = Agent(name="assistant", model="demo")  # reads OPENAI_BASE_URL and OPENAI_API_KEY
# end of setup
from agents import ModelSettings, OpenAIConversationsSession, OpenAIResponsesModel, SQLiteSession, function_tool
from pydantic import BaseModel


class Weather(BaseModel):
    place: str
    degrees: int


@function_tool
def weather(place: str) -> str:
    """The weather of a place."""
    return os.environ["WEATHER"]


@function_tool(name_override="weather")
def weather_typed(place: str) -> str:
    """The weather of a place."""
    return os.environ["WEATHER_TYPED"]


QUESTION = "What is the capital of France?"
SHORT = ModelSettings(temperature=0, max_tokens=40)


async def check(model, name):
    plain = Agent(name="assistant", model=model("demo"), model_settings=SHORT)
    answer = await Runner.run(plain, QUESTION)
    assert "Paris" in answer.final_output
    stream = Runner.run_streamed(plain, QUESTION)
    text = [
        event.data.delta
        async for event in stream.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(text) == stream.final_output == answer.final_output

    told = Agent(name="assistant", model=model("chat"), tools=[weather])
    assert (await Runner.run(told, os.environ["ASK_WEATHER"])).final_output == "It is sunny in Paris."
    stream = Runner.run_streamed(told, os.environ["ASK_WEATHER"])
    async for _ in stream.stream_events():
        pass
    assert stream.final_output == "It is sunny in Paris."

    typed = Agent(name="assistant", model=model("chat"), tools=[weather_typed], output_type=Weather)
    assert (await Runner.run(typed, os.environ["ASK_WEATHER"])).final_output == Weather(place="Paris", degrees=21)

    session = SQLiteSession(name)
    assert (await Runner.run(plain, QUESTION, session=session)).final_output
    assert (await Runner.run(plain, "And of Spain?", session=session)).final_output
    assert len(await session.get_items()) == 4


async def main():
    client = AsyncOpenAI()
    await check(lambda name: OpenAIChatCompletionsModel(name, client), "chat")
    print("passed: chat completions")
    await check(lambda name: OpenAIResponsesModel(name, client), "responses")
    print("passed: responses")

    plain = Agent(name="assistant", model="demo", model_settings=SHORT)
    session = OpenAIConversationsSession()
    await Runner.run(plain, QUESTION, session=session)
    await Runner.run(plain, "And of Spain?", session=session)
    assert len(await session.get_items()) == 4
    print("passed: conversations")


asyncio.run(main())
