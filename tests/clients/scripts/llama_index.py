import asyncio
import os

# setup
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

service = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
llm = OpenAILike(model="demo", is_chat_model=True, is_function_calling_model=True, context_window=8192, **service)
embeddings = OpenAILikeEmbedding(model_name="minilm", **service)
# end of setup
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel


class Dog(BaseModel):
    name: str
    age: int


def weather(place: str) -> str:
    """The weather of a place."""
    return os.environ["WEATHER"]


QUESTION = [ChatMessage(role="user", content="What is the capital of France?")]

answer = llm.chat(QUESTION, temperature=0, max_tokens=30)
assert "Paris" in answer.message.content
print("passed: chat")

*_, last = llm.stream_chat(QUESTION, temperature=0, max_tokens=30)
assert last.message.content == answer.message.content
print("passed: stream")

told = llm.model_copy(update={"model": "chat"})
agent = FunctionAgent(tools=[weather], llm=told)


async def ask():
    return await agent.run(os.environ["ASK_WEATHER"])


assert str(asyncio.run(ask())) == "It is sunny in Paris."
print("passed: tools")

assert isinstance(llm.as_structured_llm(Dog).chat([ChatMessage(role="user", content="Invent a dog.")]).raw, Dog)
print("passed: structured output")

assert len(embeddings.get_text_embedding("a lamp")) == 384
print("passed: embeddings")

index = VectorStoreIndex.from_documents([Document(text="The lamp is green.")], embed_model=embeddings)
assert str(index.as_query_engine(llm=llm).query("Which colour has the lamp?"))
print("passed: retrieval")
