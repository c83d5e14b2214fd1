"""`make fetch-model`: brings the files of a model in models/ to this machine and verifies them.

With REPO it first writes the model's source.json, from what the hub has at REVISION.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from nvidia_triton.hub import source
from nvidia_triton.hub.download import Progress, Show, fetch
from nvidia_triton.hub.transfer import DownloadError, Hub, Passing
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.progress import say
from nvidia_triton.vast.repository import NAME as MODEL_NAME
from nvidia_triton.vast.settings import ROOT, load_settings

INTERRUPTED = 130


def run(console: Console, models: Path, environ: dict[str, str]) -> None:
    """
    Raises:
        DownloadError, Passing, SourceProblem, TargetError: with a sentence for the user.
    """
    name, repository = environ.get("MODEL", ""), environ.get("REPO", "")
    if not name:
        raise TargetError("Say which model: `make fetch-model MODEL=minilm`, a folder of models/.")
    folder = models / name
    if not MODEL_NAME.fullmatch(name) or not folder.is_dir():
        raise TargetError(
            f"There is no models/{name}: copy the example that is nearest first, as docs/models.md shows under "
            '"Add a model".'
        )
    settings = load_settings(environ)
    token = settings.hf_token.get_secret_value() if settings.hf_token else ""
    hub = Hub(settings.environ.get("HF_ENDPOINT", ""), token)
    if repository:
        if "/" not in repository.strip("/") or " " in repository:
            raise TargetError(f"REPO={repository} is not the name of a repository: give it as owner/name.")
        described = source.describe(
            hub, repository, environ.get("REVISION") or "main", environ.get("FILES", "").split()
        )
        source.write(folder, described)
        say(console, f"models/{name}/{source.NAME}: {described.repository} at {described.revision}")
        for file in described.files:
            say(console, f"  {file.size / 1e6:12,.3f} MB  {file.path}")
    found = source.read(folder)
    if found is None:
        raise TargetError(
            f"models/{name} has no {source.NAME}: write one with `make fetch-model MODEL={name} REPO=owner/name "
            "[REVISION=main]`."
        )
    with _shown(console) as show:
        fetched = fetch([found.order(name, folder / source.WEIGHTS)], hub, show)[name]
    whole = f"{len(found.files)} files, {found.size / 1e6:,.1f} MB, are verified in models/{name}/{source.WEIGHTS}"
    say(console, f"{whole}; downloaded: {', '.join(fetched) or 'none'}.")


@contextmanager
def _shown(console: Console) -> Iterator[Show]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {step: bar.add_task(step, total=None, visible=False) for step in ("verifying", "downloading")}

        def show(progress: Progress) -> None:
            bar.update(tasks[progress.step], completed=progress.done, total=progress.total, visible=True)

        yield show


def main() -> int:
    try:
        run(Console(), ROOT / "models", dict(os.environ))
    except (DownloadError, TargetError) as error:
        problem = str(error)
    except Passing as error:
        problem = f"{error}. Try again."
    except source.SourceProblem as error:
        problem = "\n".join(f"models/{os.environ['MODEL']}/{source.NAME}: {each}" for each in error.problems)
    except OSError as error:
        problem = f"models/{os.environ['MODEL']} cannot be written: {error.strerror}."
    except KeyboardInterrupt:
        print("Interrupted. What has arrived is kept: repeat this to go on.", file=sys.stderr)
        return INTERRUPTED
    else:
        return 0
    print(problem, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
