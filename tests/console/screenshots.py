"""The pictures of the documents: each page of the console with the demo's data, light and dark.

`python -m tests.console.screenshots [NAME ...]`; `OUT=folder` puts them elsewhere, `PHONE=1` makes those of a
phone too.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.async_api import Browser, async_playwright

from app.console.navigation import ENTRIES
from nvidia_triton.local.settings import ROOT
from tests.console.conftest import BROWSERS, MISSING
from tests.console.demo import demo_service
from tests.service import Service

OUT = ROOT / "docs" / "screenshots"
WIDE, PHONE = {"width": 1120, "height": 760}, {"width": 390, "height": 780}
COLOURS = 255


async def pages(service: Service) -> dict[str, str]:
    """Each picture's name and address: those of the head, and one of each kind of thing."""
    client = service.client
    found = {entry.path.strip("/") or "overview": entry.path for entry in ENTRIES}
    # Of those that the model answered, one of the longest.
    tickets = (await client.get("/results/", params={"status": "completed", "limit": 30})).json()
    likely = [each for each in tickets if not each["parameters"].get("temperature")]
    found["ticket"] = f"/tickets/{max(likely, key=lambda each: len(each['output'] or ''))['id']}"
    found["comparison"] = f"/compare/{(await client.get('/comparisons/')).json()[0]['id']}"
    for name, path in {"batch": "/batches", "conversation": "/chat", "model": "/models", "host": "/hosts"}.items():
        first = re.search(rf'href="/console({path}/(?!new)[^"?#]+)', (await client.get(f"/console{path}")).text)
        assert first is not None, path
        found[name] = first[1]
    return found


async def take(browser: Browser, service: Service, names: list[str], out: Path) -> None:
    base = str(service.client.base_url).rstrip("/")
    for scheme in ("light", "dark"):
        for kind, size in {"": WIDE, **({"-phone": PHONE} if os.environ.get("PHONE") else {})}.items():
            context = await browser.new_context(viewport=size, color_scheme=scheme, timezone_id="UTC", locale="en-GB")
            page = await context.new_page()
            for name, path in (await pages(service)).items():
                if names and name not in names:
                    continue
                await page.goto(f"{base}/console{path}")
                if await page.evaluate("document.documentElement.dataset.live === 'on'"):
                    await page.wait_for_function("document.getElementById('live-state').textContent !== ''")
                picture = await page.screenshot(full_page=bool(kind))
                # A palette makes it half as large, and nobody sees a difference.
                small = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
                small.save(out / f"{name}-{scheme}{kind}.png", optimize=True)
            await context.close()


def main() -> None:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        sys.exit(f"There is {MISSING}")
    out = Path(os.environ.get("OUT") or OUT)
    out.mkdir(parents=True, exist_ok=True)
    # The real model, not the simulation of the tests.
    os.environ["ENGINE"] = ""
    asyncio.run(show(executable, out))
    made = sorted(out.glob("*.png"))
    print(f"{len(made)} pictures in {out}, {sum(each.stat().st_size for each in made) / 1024:,.0f} KiB")


async def show(executable: str, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        async with demo_service(Path(name)) as service, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
            await take(browser, service, sys.argv[1:], out)
            await browser.close()


if __name__ == "__main__":
    main()
