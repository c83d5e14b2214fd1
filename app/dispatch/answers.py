"""What an engine said, as the columns of its result."""

from collections.abc import Sequence
from typing import Any

from app.db.tables.results import SettledColumns
from app.tasks.chunks import Accumulator
from app.tasks.infer import Responses
from app.tasks.outputs import OutputFile


def answer_of(made: Accumulator, provenance: dict[str, Any] | None) -> SettledColumns:
    """The texts or tensors so far; `outputs` where the one text does not say it all."""
    if isinstance(made, Responses):
        return SettledColumns(answer=made.document(), provenance=provenance)
    # Postgres text has no NUL; an engine may well emit one.
    texts = [text.replace("\x00", "\ufffd") for text in made.joined()]
    reasons = [reason or "" for reason in made.finish_reasons] if made.finished else []
    outputs = None
    if len(texts) > 1 or any(made.logprobs):
        outputs = [
            {
                "index": index,
                "text": text,
                "finish_reason": _at(reasons, index),
                "cumulative_logprob": _at(made.cumulative_logprobs, index),
                "logprobs": _at(made.logprobs, index),
            }
            for index, text in enumerate(texts)
        ]
    return SettledColumns(
        output=texts[0] if texts else None,
        outputs=outputs,
        finish_reason=_at(reasons, 0),
        prompt_tokens=made.prompt_tokens,
        completion_tokens=made.completion_tokens,
        provenance=provenance,
    )


def files_of(made: Accumulator) -> tuple[OutputFile, ...]:
    """What of the answer is stored beside its row."""
    return made.files() if isinstance(made, Responses) else ()


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None
