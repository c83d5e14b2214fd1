"""The documents say what is so: their commands are run, their tables held against the code."""

import asyncio
import json
import re
import subprocess
from pathlib import Path

import asyncpg

from app import errors
from app.config import Settings
from app.engines.triton import faults
from nvidia_triton.local.banner import curl_lines
from tests.service import Service, eventually

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
HISTORY = (ROOT / "docs" / "history.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def settings_table() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        rows.append(f"| `{name.upper()}` | `{default}` | {field.description} |")
    return "\n".join(rows)


def test_the_readmes_settings_are_those_of_the_code() -> None:
    assert settings_table() in README


def test_the_readmes_curl_lines_are_those_that_make_run_prints() -> None:
    assert blocks(README, "sh")[0].splitlines() == curl_lines("http://127.0.0.1:8887")


def shell(script: str) -> str:
    done = subprocess.run(["bash", "-eu", "-o", "pipefail", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_readmes_commands_work_as_they_stand(service: Service) -> None:
    """Only the address differs, and the model, which the test's server calls by another name."""
    url = str(service.client.base_url).rstrip("/")
    script = "\n".join(blocks(README, "sh")).replace("http://127.0.0.1:8887", url).replace("/send/demo/", "/send/tiny/")
    lines = [line for line in script.splitlines() if line]
    assert len(lines) == 11
    output = await asyncio.to_thread(shell, "; echo;\n".join(lines))
    answers = [json.loads(line) for line in output.splitlines() if line]
    result, models, ticket, found, cancelled, attempts, ready, retried, problem = answers
    assert (result["status"], result["usage"]["completion_tokens"] > 0) == ("completed", True)
    assert result["output"]
    assert result["finish_reason"] in ("stop", "length")
    assert "tiny" in [model["name"] for model in models]
    assert ticket["status"] == "pending"
    assert found[0]["id"] == ticket["result_id"]
    assert cancelled == result
    assert len(attempts) == 1
    assert ready["status"] == "ready"
    assert retried["retry_of"] == result["id"]
    assert problem == json.loads(blocks(README, "json")[1])


async def test_the_readmes_result_has_the_fields_that_results_have(service: Service) -> None:
    shown = json.loads(blocks(README, "json")[0])
    assert list(shown) == list(await service.run(max_tokens=3))


async def test_the_history_queries_run_and_find_rows(service: Service) -> None:
    queries = blocks(HISTORY, "sql")
    assert len(queries) == 14
    context = await service.context("A prompt.", metadata={"source": "tests"})
    await service.settled(await service.send(context, parameters={"max_tokens": 2, "ignore_eos": True}))
    await service.run("word " * 400)
    entries = [{"model": model, "parameters": {"max_tokens": 1}} for model in ("tiny", "slow")]
    comparison = await service.client.post("/comparisons/", json={"content": "A prompt.", "entries": entries})
    results = [entry["result_id"] for entry in comparison.json()["entries"]]
    await asyncio.gather(*map(service.settled, results))
    pick = f"/comparisons/{comparison.json()['id']}/pick"
    assert (await service.client.put(pick, json={"result_id": results[0]})).status_code == 200
    await service.send(model="slow", parameters={"max_tokens": 3000, "ignore_eos": True})
    retried = await service.send(prompt="[[sim:error=x]]")

    async def tried_twice() -> bool:
        return (await service.result(retried))["attempt_count"] > 1

    await eventually(tried_twice, "a second attempt")
    connection = await asyncpg.connect(service.settings.database_url)
    try:
        await connection.execute(
            "INSERT INTO ratings (result_id, owner_id, rating) SELECT id, 0, 1 FROM results LIMIT 1"
        )
        for query in queries:
            assert await connection.fetch(query), query
    finally:
        await connection.close()


def codes(kind: type[errors.AppError]) -> set[str]:
    return {kind.code}.union(*(codes(each) for each in kind.__subclasses__()))


def test_every_error_code_is_documented() -> None:
    documented = set(re.findall(r"`([a-z_]+)`", ERRORS))
    assert codes(errors.AppError) <= documented
    source = "".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    of_engine = {rule.code for rule in faults.IN_STREAM_RULES} | {rule[0] for rule in faults.RPC_RULES.values()}
    of_engine |= set(re.findall(r'EngineError\(\s*"([a-z_]+)"', source))
    of_engine |= set(re.findall(r'error_code="([a-z_]+)"', source))
    assert of_engine - documented == set()


def test_every_link_between_documents_leads_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_picture_is_there_and_each_is_shown() -> None:
    shown = set()
    for document in (ROOT / "README.md", ROOT / "docs" / "console.md"):
        for target in re.findall(r'\bsrc(?:set)?="([^"]+)"', document.read_text()):
            shown.add((document.parent / target).resolve())
    pictures = set((ROOT / "docs" / "screenshots").iterdir())
    assert shown == pictures
    assert sum(each.stat().st_size for each in pictures) < 1_500_000


def test_the_tests_named_as_proof_exist() -> None:
    named = set(re.findall(r"`(?:tests/\S+::)?(test_[a-z0-9_]+)`", (ROOT / "docs" / "architecture.md").read_text()))
    assert len(named) >= 9
    defined = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))))
    assert named <= defined
