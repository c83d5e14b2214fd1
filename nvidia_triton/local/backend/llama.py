"""The local engine that runs a real model: llama.cpp, for models whose weights are installed here."""

import os
from pathlib import Path

from llama_engine import STEP_TOKENS, Engine, Request
from llama_grammar import Grammars
from llama_library import Model
from llama_sampling import Sampler
from llama_text import Generation, told

# Beside one request as long as the context, all others find room for prompts and answers of this many tokens.
CELLS_PER_SLOT = 256
# The service and its database need the rest of a machine.
MAX_THREADS = 4
_UNSUPPORTED = (
    "extra_args",
    "truncate_prompt_tokens",
    "output_kind",
    "flat_logprobs",
    "skip_clone",
    "skip_reading_prefix_cache",
    "thinking_token_budget",
    "repetition_detection",
)


class Llama:
    """A model with its engine; `slots` sequences at once, each of at most `context` tokens, 0 for the model's own."""

    def __init__(self, path: Path, *, slots: int, context: int, metrics, log) -> None:
        """
        Raises:
            ValueError: the model cannot have such a context.
            RuntimeError: llama.cpp cannot load it.
        """
        self.model = Model(path, log)
        self.context = context or self.model.context
        if self.context > self.model.context:
            raise ValueError(
                f"User-specified max_model_len ({context}) is greater than the derived max_model_len "
                f"(max_position_embeddings={self.model.context}). This may lead to incorrect model outputs."
            )
        cells = -(-(self.context + slots * CELLS_PER_SLOT) // CELLS_PER_SLOT) * CELLS_PER_SLOT
        threads = max(1, min(MAX_THREADS, len(os.sched_getaffinity(0))))
        self.model.open(sequences=slots, cells=cells, batch=STEP_TOKENS, threads=threads)
        self._grammars = Grammars(self.model)
        self.engine = Engine(self.model, slots, self.context, cells, metrics, log)

    def prepare(self, job, prompt: list[int], params, stream: bool) -> Request:
        """
        Raises:
            ValueError: the engine cannot do what `params` ask for.
        """
        self._check(params)
        grammar = None if params.structured_outputs is None else self._grammars.compile(params.structured_outputs)
        generation = Generation(params, self.model, min(params.max_tokens, self.context - len(prompt)))
        sampler = Sampler(params, prompt, self.model, grammar)
        return Request(job, prompt, generation, sampler, stream, params.prompt_logprobs)

    def prompt_logprobs(self, request: Request) -> list[dict]:
        """For each token of its prompt the token, then the likeliest at its place; nothing tells of the first one."""
        first, pieces = request.prompt[0], self.model.pieces
        told_first = {first: {"logprob": None, "rank": None, "decoded_token": pieces[first].decode(errors="replace")}}
        return [told_first, *told(request.prompt_rows, pieces)]

    def _check(self, params) -> None:
        refused = [name for name in _UNSUPPORTED if getattr(params, name) not in (None, False)]
        if params.n > 1:
            refused.insert(0, "n above 1")
        if (params.structured_outputs or {}).get("structural_tag") is not None:
            refused.append("structured_outputs.structural_tag")
        if refused:
            raise ValueError(f"The local engine, llama.cpp, does not support {', '.join(refused)}.")
        for name, tokens in (
            ("stop_token_ids", params.stop_token_ids),
            ("allowed_token_ids", params.allowed_token_ids or []),
            ("logit_bias", [int(token) for token in params.logit_bias or ()]),
        ):
            unknown = [token for token in tokens if not 0 <= token < self.model.size]
            if unknown and name == "allowed_token_ids":
                raise ValueError("allowed_token_ids contains out-of-vocab token id!")
            if unknown:
                raise ValueError(
                    f"token_id(s) {unknown} in {name} contain out-of-vocab token ids. "
                    f"Vocabulary size: {self.model.size}"
                )
