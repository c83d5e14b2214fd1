"""docs/console.md: its commands are run as they stand."""

import asyncio
import json
from pathlib import Path

from tests.docs.test_docs import blocks, shell
from tests.service import Service

CONSOLE = (Path(__file__).resolve().parents[2] / "docs" / "console.md").read_text()


async def test_the_curl_lines_work_as_they_stand(service: Service) -> None:
    """Only the address differs, and the model, which the test's server calls by another name."""
    answered = await service.run()
    (script,) = blocks(CONSOLE, "sh")
    script = script.replace("http://127.0.0.1:8887", str(service.client.base_url).rstrip("/"))
    output = await asyncio.to_thread(
        shell, script.replace("model=demo", "model=tiny").replace("\ncurl", "\necho\ncurl")
    )
    rating, ratings, similar, child, changed, read, listed, refused = (
        json.loads(line) for line in output.splitlines() if line
    )
    assert (rating["result_id"], rating["rating"], rating["comment"]) == (answered["id"], "good", "Short.")
    assert ratings == [rating]
    assert similar == {"status": "off", "questions": []}
    assert (child["whole"], changed) == ("Be polite.\n\nYou answer customers.", read)
    assert [each["name"] for each in listed] == ["House", "Support"]
    assert refused["code"] == "instructions_in_use"
    assert (await service.client.get("/ratings/")).json() == []
