"""What a ticket asks of a model that takes tensors, and how its responses become an answer. Pure, no I/O."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.tasks.chunks import Accumulator, Chunk
from app.tasks.outputs import Output, OutputFile, media_type_of

INFER: Literal["infer"] = "infer"


class InferParameters(BaseModel):
    """Asks for tensors; the context then holds those of the request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: Literal["infer"] = INFER

    def for_engine(self, _default_max_tokens: int) -> dict[str, Any]:
        """What is stored and sent."""
        return {"task": self.task}


class Responses(Accumulator):
    """Keeps the responses of a model in order: one, or any number where it is decoupled."""

    def __init__(self) -> None:
        super().__init__()
        self.responses: list[list[Output]] = []
        self._ended = False

    def add(self, chunk: Chunk, choice: int = 0) -> None:
        self.size += chunk.size
        if chunk.outputs:
            self.responses.append(chunk.outputs)
        self._ended = self._ended or chunk.final

    @property
    def finished(self) -> bool:
        return self._ended

    def document(self) -> dict[str, Any] | None:
        """What is stored of the answer, less its files; None where nothing came."""
        outputs = [each.document(number) for number, response in enumerate(self.responses) for each in response]
        return {"outputs": outputs} if outputs or self._ended else None

    def files(self) -> tuple[OutputFile, ...]:
        return tuple(
            OutputFile(number, output.name, element, media_type_of(data), data)
            for number, response in enumerate(self.responses)
            for output in response
            for element, data in enumerate(output.files)
        )
