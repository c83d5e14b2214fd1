import os

# setup
from smolagents import OpenAIModel

model = OpenAIModel("demo", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
# end of setup
import base64
import json

from smolagents import CodeAgent, ToolCallingAgent, tool


@tool
def weather(place: str) -> str:
    """The weather of a place.

    Args:
        place: where
    """
    return "Sunny " + calls("final_answer", answer="It is sunny.")


def says(text: str) -> str:
    """What makes the model `chat` answer so."""
    return f"[[sim:emit64={base64.b64encode(text.encode()).decode()}]]"


def calls(name: str, **arguments: str) -> str:
    """As a model is made to write where a call is required, which the agent asks for."""
    return says(json.dumps([{"name": name, "parameters": arguments}]))


QUESTION = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
told = OpenAIModel("chat", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])

answer = model.generate(QUESTION, temperature=0, max_tokens=30).content
assert "Paris" in answer
print("passed: chat")

deltas = model.generate_stream(QUESTION, temperature=0, max_tokens=30)
assert "".join(delta.content or "" for delta in deltas) == answer
print("passed: stream")

agent = ToolCallingAgent([weather], told, max_steps=4)
assert agent.run(f"What is the weather? {calls('weather', place='Paris')}") == "It is sunny."
print("passed: tools")

code = "Thought: I know.\n<code>\nfinal_answer(6 * 7)\n</code>"
assert CodeAgent([], told, max_steps=2).run(f"What is 6 times 7? {says(code)}") == 42
print("passed: code agent")
