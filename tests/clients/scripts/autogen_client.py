import asyncio
import os

# setup
from autogen_ext.models.openai import OpenAIChatCompletionClient

INFO = {"vision": False, "function_calling": True, "json_output": True, "structured_output": True, "family": "unknown"}
model = OpenAIChatCompletionClient(model="demo", model_info=INFO)  # reads OPENAI_BASE_URL and OPENAI_API_KEY
# end of setup
from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import UserMessage
from pydantic import BaseModel


class Dog(BaseModel):
    name: str
    age: int


async def weather(place: str) -> str:
    """The weather of a place."""
    return os.environ["WEATHER"]


async def main():
    question = [UserMessage(content="What is the capital of France?", source="user")]
    options = {"temperature": 0, "max_tokens": 30}
    answer = await model.create(question, extra_create_args=options)
    assert "Paris" in answer.content
    print("passed: chat")

    *parts, last = [each async for each in model.create_stream(question, extra_create_args=options)]
    assert "".join(parts) == last.content == answer.content
    print("passed: stream")

    told = OpenAIChatCompletionClient(model="chat", model_info=INFO)
    agent = AssistantAgent("assistant", told, tools=[weather], reflect_on_tool_use=True)
    assert (await agent.run(task=os.environ["ASK_WEATHER"])).messages[-1].content == "It is sunny in Paris."
    print("passed: tools")

    typed = AssistantAgent("assistant", model, output_content_type=Dog)
    assert isinstance((await typed.run(task="Invent a dog.")).messages[-1].content, Dog)
    print("passed: structured output")


asyncio.run(main())
