"""llama.cpp through the C symbols of the wheel `xllamacpp`: one model, one context, no C compiler.

Where a field lies in llama.cpp's parameter structs differs between releases. `Model` therefore writes only the fields
named in _FIELDS, and asks the context afterwards whether each arrived.
"""

import ctypes
import importlib.util
import os
import struct
from pathlib import Path

import numpy as np

_INT = ctypes.c_int32
_POINTER = ctypes.c_void_p
# Offsets in llama_context_params of the pinned release.
_FIELDS = {"n_ctx": 0, "n_batch": 4, "n_ubatch": 8, "n_seq_max": 12, "n_threads": 28, "n_threads_batch": 32}
_KV_UNIFIED = 141
_CONTROL = 1 << 3
_LONGEST_PIECE = 1024
_ERROR_LEVEL = 4
_LOG = ctypes.CFUNCTYPE(None, _INT, ctypes.c_char_p, _POINTER)


class _Parameters(ctypes.Structure):
    # Larger than any parameter struct: a callee takes what is its own, from the front.
    _fields_ = (("bytes", ctypes.c_uint8 * 512),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", _INT),
        ("token", ctypes.POINTER(_INT)),
        ("embd", _POINTER),
        ("pos", ctypes.POINTER(_INT)),
        ("n_seq_id", ctypes.POINTER(_INT)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_INT))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_SIGNATURES = (
    ("llama_backend_init", None, ()),
    ("llama_log_set", None, (_LOG, _POINTER)),
    ("llama_model_default_params", _Parameters, ()),
    ("llama_context_default_params", _Parameters, ()),
    ("llama_model_load_from_file", _POINTER, (ctypes.c_char_p, _Parameters)),
    ("llama_model_free", None, (_POINTER,)),
    ("llama_model_n_ctx_train", _INT, (_POINTER,)),
    ("llama_init_from_model", _POINTER, (_POINTER, _Parameters)),
    ("llama_free", None, (_POINTER,)),
    ("llama_n_ctx", ctypes.c_uint32, (_POINTER,)),
    ("llama_n_ctx_seq", ctypes.c_uint32, (_POINTER,)),
    ("llama_n_batch", ctypes.c_uint32, (_POINTER,)),
    ("llama_n_ubatch", ctypes.c_uint32, (_POINTER,)),
    ("llama_n_seq_max", ctypes.c_uint32, (_POINTER,)),
    ("llama_n_threads", _INT, (_POINTER,)),
    ("llama_n_threads_batch", _INT, (_POINTER,)),
    ("llama_model_get_vocab", _POINTER, (_POINTER,)),
    ("llama_vocab_n_tokens", _INT, (_POINTER,)),
    ("llama_vocab_eos", _INT, (_POINTER,)),
    ("llama_vocab_is_eog", ctypes.c_bool, (_POINTER, _INT)),
    ("llama_vocab_get_attr", _INT, (_POINTER, _INT)),
    (
        "llama_tokenize",
        _INT,
        (_POINTER, ctypes.c_char_p, _INT, ctypes.POINTER(_INT), _INT, ctypes.c_bool, ctypes.c_bool),
    ),
    ("llama_token_to_piece", _INT, (_POINTER, _INT, ctypes.c_char_p, _INT, _INT, ctypes.c_bool)),
    ("llama_batch_init", _Batch, (_INT, _INT, _INT)),
    ("llama_batch_free", None, (_Batch,)),
    ("llama_decode", _INT, (_POINTER, _Batch)),
    ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), (_POINTER, _INT)),
    ("llama_get_memory", _POINTER, (_POINTER,)),
    ("llama_memory_seq_rm", ctypes.c_bool, (_POINTER, _INT, _INT, _INT)),
)


def find() -> Path | None:
    """The shared library of the installed wheel, None without one."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders for path in Path(folder).glob("xllamacpp*.so")), None)


class Model:
    """Weights, vocabulary and the context that decodes; used by one thread, `tokenize` and `pieces` by any."""

    def __init__(self, weights: Path, log) -> None:
        """
        Raises:
            RuntimeError: llama.cpp cannot load the file.
        """
        # Threads that wait spin otherwise, which costs the rest of a small machine more than it gains here.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        self._library = library = ctypes.CDLL(str(find()))
        for name, result, arguments in _SIGNATURES:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        # llama.cpp keeps the pointer: the callback must live as long as the library.
        self._log = _LOG(lambda level, text, _: log(text.decode(errors="replace")) if level == _ERROR_LEVEL else None)
        library.llama_log_set(self._log, None)
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(os.fsencode(weights), library.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {weights.name}")
        self.context = library.llama_model_n_ctx_train(self._model)
        self.vocabulary = library.llama_model_get_vocab(self._model)
        self.size = library.llama_vocab_n_tokens(self.vocabulary)
        self.end = library.llama_vocab_eos(self.vocabulary)
        self.ends = frozenset(t for t in range(self.size) if library.llama_vocab_is_eog(self.vocabulary, t))
        self.special = frozenset(
            t for t in range(self.size) if library.llama_vocab_get_attr(self.vocabulary, t) & _CONTROL
        )
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        self.pieces = [self._piece(token, buffer) for token in range(self.size)]

    def open(self, *, sequences: int, cells: int, batch: int, threads: int) -> None:
        """Make the context. `cells` tokens are shared by all `sequences`; `batch` is the most that one `decode` takes.

        Raises:
            RuntimeError: there is no memory for it, or the library is another release than the pinned one.
        """
        library = self._library
        wanted = {
            "n_ctx": cells,
            "n_batch": batch,
            "n_ubatch": batch,
            "n_seq_max": sequences,
            "n_threads": threads,
            "n_threads_batch": threads,
        }
        parameters = library.llama_context_default_params()
        for name, value in wanted.items():
            struct.pack_into("<I", parameters.bytes, _FIELDS[name], value)
        parameters.bytes[_KV_UNIFIED] = 1
        self._context = library.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {cells} tokens")
        # Only a unified cache lets one sequence have all cells.
        for name, value in {**wanted, "n_ctx_seq": cells}.items():
            if getattr(library, f"llama_{name}")(self._context) != value:
                raise RuntimeError(f"the installed xllamacpp is not the pinned release: it has another {name}")
        self._memory = library.llama_get_memory(self._context)
        self._batch = library.llama_batch_init(batch, 0, 1)

    @property
    def tokenize_address(self) -> int:
        return ctypes.cast(self._library.llama_tokenize, _POINTER).value or 0

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, special tokens among it read as such, as the model's own tokenizer does."""
        data = text.encode()
        count = -self._library.llama_tokenize(self.vocabulary, data, len(data), None, 0, True, True)
        ids = (_INT * max(count, 1))()
        count = self._library.llama_tokenize(self.vocabulary, data, len(data), ids, count, True, True)
        return list(ids[:count])

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Run rows of (token, position, sequence, whether its logits are wanted).

        Raises:
            RuntimeError: llama.cpp failed; the context is of no further use.
        """
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted
        if code := self._library.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code}")

    def logits(self, row: int) -> np.ndarray:
        """float32 [size] of a row of the last `decode`; a view that the next one overwrites."""
        return np.ctypeslib.as_array(self._library.llama_get_logits_ith(self._context, row), (self.size,))

    def forget(self, sequence: int) -> None:
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def close(self) -> None:
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def _piece(self, token: int, buffer) -> bytes:
        size = self._library.llama_token_to_piece(self.vocabulary, token, buffer, _LONGEST_PIECE, 0, True)
        return ctypes.string_at(buffer, max(size, 0))
