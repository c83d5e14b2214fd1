"""docs/comparisons.md: its commands are run as they stand."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.comparisons.conftest import make_settings as make_settings
from tests.comparisons.conftest import triton as triton
from tests.docs.test_docs import blocks, shell
from tests.service import Service

ROOT = Path(__file__).resolve().parents[2]
COMPARISONS = (ROOT / "docs" / "comparisons.md").read_text()


async def test_the_curl_lines_work_as_they_stand(service: Service) -> None:
    """Only the address differs, and the model, which the test's server calls by another name."""
    (script,) = blocks(COMPARISONS, "sh")
    url = str(service.client.base_url).rstrip("/")
    script = script.replace("http://127.0.0.1:8887", url).replace('"model": "demo"', '"model": "chat"')
    output = await asyncio.to_thread(shell, script.replace("\ncurl", "\necho\ncurl"))
    stream, tables = output.split("event: ", 1)[1], output[output.rindex("\n\n") :].split()
    assert stream.count("event: completed") + stream.startswith("completed") == 2
    assert '"deltas":[{' in stream
    read, listed, pick, picks, cancelled = (
        json.loads(line) for line in output[output.rindex("\n\n") :].splitlines() if line
    )
    assert len(tables) >= 3
    assert read["status"] == "completed"
    assert [entry["model"] for entry in read["entries"]] == ["chat", "chat"]
    assert [each["id"] for each in listed] == [read["id"]]
    assert (picks, pick["models"]) == ([pick], ["chat", "chat"])
    assert cancelled == read
    assert (await service.client.get(f"/comparisons/{read['id']}")).status_code == 404


async def test_make_compare_prints_a_table_of_the_answers(service: Service) -> None:
    command = [sys.executable, "-m", "nvidia_triton.local.compare"]
    environment = os.environ | {
        "API_URL": str(service.client.base_url),
        "PROMPT": "Say hello.",
        "MODELS": "chat chat",
        "MAX_TOKENS": "5",
        "COLUMNS": "160",
    }

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment | changes, capture_output=True, text=True, timeout=60)

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("completed") == 2
    assert done.stdout.count("[simulated]") == 2
    wrong = await asyncio.to_thread(run, MODELS="chat nobody")
    assert wrong.returncode == 1
    assert "entries.1.model" in wrong.stdout
