"""What engines send piece by piece, and how the pieces become an answer. Pure, no I/O."""

from dataclasses import dataclass, field
from typing import Any

from app.tasks.outputs import Output

# Where an engine counts none.
CHARACTERS_PER_TOKEN = 4


def tokens_in(text: str) -> int:
    """About as many as a text has."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


@dataclass(slots=True)
class Chunk:
    """What one message of an engine adds: a text, a finish reason (None while it goes on) and a token count.

    The answer of an embedding model has one of each for every vector.
    """

    texts: list[str]
    finish_reasons: list[str | None]
    prompt_tokens: int | None = None
    completion_tokens: list[int] = field(default_factory=list)
    logprobs: list[list[dict[str, Any]] | None] = field(default_factory=list)
    cumulative_logprobs: list[float | None] = field(default_factory=list)
    final: bool = False
    # Bytes of texts and logprobs, or of tensors.
    size: int = 0
    # Whether the counts are ours, because the engine tells none.
    estimated: bool = False
    # Of a model that answers with tensors.
    outputs: list[Output] = field(default_factory=list)


class Accumulator:
    """Adds up the messages of a ticket's generations, one for each of its `choices`."""

    def __init__(self, choices: int = 1) -> None:
        self.choices = choices
        self.texts: list[list[str]] = []
        self.finish_reasons: list[str | None] = []
        self.logprobs: list[list[dict[str, Any]] | None] = []
        self.cumulative_logprobs: list[float | None] = []
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        # Of each choice, as far as they are told.
        self.tokens: list[int] = []
        self.estimated = False
        self.size = 0

    def add(self, chunk: Chunk, choice: int = 0) -> None:
        """Adds a message of the generation of one choice. They share the prompt, so its tokens count once."""
        self.size += chunk.size
        while len(self.texts) < choice + len(chunk.texts):
            self.texts.append([])
            self.finish_reasons.append(None)
            self.logprobs.append(None)
            self.cumulative_logprobs.append(None)
            self.tokens.append(0)
        for index, text in enumerate(chunk.texts, choice):
            if text:
                self.texts[index].append(text)
        for index, reason in enumerate(chunk.finish_reasons, choice):
            if reason is not None:
                self.finish_reasons[index] = reason
        for index, logprobs in enumerate(chunk.logprobs, choice):
            if logprobs:
                known = self.logprobs[index]
                if known is None:
                    self.logprobs[index] = list(logprobs)
                else:
                    known.extend(logprobs)
        for index, cumulative in enumerate(chunk.cumulative_logprobs, choice):
            if cumulative is not None:
                self.cumulative_logprobs[index] = cumulative
        self.estimated = self.estimated or chunk.estimated
        if chunk.prompt_tokens is not None:
            self.prompt_tokens = chunk.prompt_tokens
        if chunk.completion_tokens:
            self.completion_tokens = (self.completion_tokens or 0) + sum(chunk.completion_tokens)
            for index, count in zip(range(choice, len(self.tokens)), chunk.completion_tokens, strict=False):
                self.tokens[index] += count

    def joined(self) -> list[str]:
        return ["".join(parts) for parts in self.texts]

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return len(self.texts) >= self.choices and all(reason is not None for reason in self.finish_reasons)
