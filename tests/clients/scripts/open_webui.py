import json
import os
import subprocess
import time
import urllib.error
import urllib.request

PORT = os.environ["PORT"]
# setup
os.environ |= {
    "OPENAI_API_BASE_URL": os.environ["OPENAI_BASE_URL"],  # and OPENAI_API_KEY
    "RAG_EMBEDDING_ENGINE": "openai",  # documents are embedded by the service, too
    "RAG_EMBEDDING_MODEL": "minilm",
    "ENABLE_OLLAMA_API": "false",
    "DATA_DIR": os.path.abspath("data"),
}
server = subprocess.Popen(["open-webui", "serve", "--host", "127.0.0.1", "--port", PORT])
# end of setup


def ask(path: str, body: object = None, token: str = "") -> str:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, headers)) as answer:
        return answer.read().decode()


def started() -> bool:
    try:
        return bool(ask("/health"))
    except urllib.error.URLError:
        assert server.poll() is None, "it has ended"
        return False


while not started():
    time.sleep(0.5)
person = {"name": "a", "email": "a@example.com", "password": "Correct-horse-1"}
token = json.loads(ask("/api/v1/auths/signup", person))["token"]

names = [each["id"] for each in json.loads(ask("/api/models", token=token))["data"]]
assert {"demo", "chat"} <= set(names), names
print("passed: models", flush=True)

chat = {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
answer = json.loads(ask("/api/chat/completions", chat, token))
assert "Paris" in answer["choices"][0]["message"]["content"]
print("passed: chat", flush=True)

lines = ask("/api/chat/completions", chat | {"stream": True}, token).splitlines()
chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
assert text == answer["choices"][0]["message"]["content"]
print("passed: stream", flush=True)

vectors = json.loads(ask("/api/embeddings", {"model": "minilm", "input": ["a lamp"]}, token))
assert len(vectors["data"][0]["embedding"]) == 384
print("passed: embeddings", flush=True)
server.terminate()
