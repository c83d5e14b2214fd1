import os

# setup
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

model = ChatOpenAI(model="demo", temperature=0, max_tokens=60)  # reads OPENAI_BASE_URL and OPENAI_API_KEY
# Otherwise it sends token ids of OpenAI's models, which mean nothing to another.
embeddings = OpenAIEmbeddings(model="minilm", check_embedding_ctx_length=False)
# end of setup
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel


class Dog(BaseModel):
    name: str
    age: int


class Weather(BaseModel):
    place: str
    degrees: int


@tool
def weather(place: str) -> str:
    """The weather of a place."""
    return os.environ["WEATHER"]


@tool("weather")
def weather_typed(place: str) -> str:
    """The weather of a place."""
    return os.environ["WEATHER_TYPED"]


QUESTION = "What is the capital of France?"
ASKED = {"messages": [{"role": "user", "content": os.environ["ASK_WEATHER"]}]}

answer = model.invoke(QUESTION)
assert "Paris" in answer.content
assert answer.usage_metadata["total_tokens"] > 0
print("passed: chat")

assert "".join(chunk.content for chunk in model.stream(QUESTION)) == answer.content
print("passed: stream")

told = ChatOpenAI(model="chat")
assert told.bind_tools([weather]).invoke(os.environ["ASK_WEATHER"]).tool_calls[0]["args"] == {"place": "Paris"}
print("passed: tools")

for method in ("json_schema", "function_calling"):
    assert isinstance(ChatOpenAI(model="demo").with_structured_output(Dog, method=method).invoke("Invent a dog."), Dog)
print("passed: structured output")

assert [len(each) for each in embeddings.embed_documents(["a lamp", "a light"])] == [384, 384]
print("passed: embeddings")

assert ChatOpenAI(model="demo", use_responses_api=True, max_tokens=20).invoke("Hello.").text
print("passed: responses")

agent = create_agent(told, [weather], checkpointer=InMemorySaver())
thread = {"configurable": {"thread_id": "1"}}
assert agent.invoke(ASKED, thread)["messages"][-1].content == "It is sunny in Paris."
after = agent.invoke({"messages": [{"role": "user", "content": "Thanks."}]}, thread)["messages"]
assert len(after) == 6
for mode, _ in agent.stream(ASKED, {"configurable": {"thread_id": "2"}}, stream_mode=["messages", "updates"]):
    assert mode in ("messages", "updates")
print("passed: agent")

typed = create_agent(told, [weather_typed], response_format=ProviderStrategy(Weather)).invoke(ASKED)
assert typed["structured_response"] == Weather(place="Paris", degrees=21)
print("passed: agent with typed output")
