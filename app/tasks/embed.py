"""What a ticket may ask of a model that makes vectors, and how a vector is stored."""

import base64
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

EMBED: Literal["embed"] = "embed"


class EmbeddingParameters(BaseModel):
    """Asks for vectors instead of text; the context then holds the JSON array of the texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: Literal["embed"] = EMBED

    def for_engine(self, _default_max_tokens: int) -> dict[str, Any]:
        """What is stored and sent."""
        return {"task": self.task}


def shortened(encoded: str, size: int) -> str:
    """The first `size` numbers of a stored vector, scaled to the length 1; whole, it stays as it is."""
    numbers = np.frombuffer(base64.b64decode(encoded), dtype="<f4")
    if len(numbers) <= size:
        return encoded
    numbers = numbers[:size]
    length = float(np.linalg.norm(numbers))
    return base64.b64encode((numbers / length if length else numbers).astype("<f4").tobytes()).decode()


def vector(encoded: str) -> list[float]:
    """The numbers of a stored vector: base64 of little-endian float32."""
    numbers: list[float] = np.frombuffer(base64.b64decode(encoded), dtype="<f4").tolist()
    return numbers
