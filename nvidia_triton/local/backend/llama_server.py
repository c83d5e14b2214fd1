"""llama.cpp's own HTTP server, which speaks OpenAI's API, for one model of the model repository.

Run by the interpreter of the engines: `python llama_server.py MODEL_FOLDER --port 8080`.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from installed import MAX_SLOTS, weights

# Threads that wait spin otherwise. It is read when the library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import xllamacpp

HOST = "127.0.0.1"
# The service and its database need the rest of a machine.
MAX_THREADS = 4
# Beside one request as long as the context, all others find room for prompts and answers of this many tokens.
CELLS_PER_SLOT = 256
STEP_TOKENS = 256
WARNINGS = 2


def parameters(folder: Path, file: Path, options: argparse.Namespace) -> xllamacpp.CommonParams:
    arguments = json.loads((folder / "1" / "model.json").read_text("utf-8"))
    template = folder / "1" / "chat_template.jinja"
    given = xllamacpp.CommonParams()
    given.model.path = str(file)
    given.model_alias = {folder.name}
    given.hostnames = [HOST]
    given.port = options.port
    given.n_parallel = options.slots
    given.n_ctx = int(arguments.get("max_model_len") or 2048) + options.slots * CELLS_PER_SLOT
    given.kv_unified = True
    # A step on a CPU is short then: a long prompt does not hold up the rest, and one that is cancelled ends soon.
    given.n_batch = given.n_ubatch = STEP_TOKENS
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = max(1, min(MAX_THREADS, threads))
    if template.exists():
        given.chat_template = template.read_text("utf-8")
    # Prompts of the past are not kept: by default they may fill 8 GiB.
    given.cache_ram_mib = 0
    given.fit_params = False
    given.warmup = False
    given.embedding = options.embeddings
    if options.embeddings:
        given.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    given.endpoint_metrics = given.endpoint_slots = True
    given.ui = False
    given.cors_origins = ""
    given.verbosity = WARNINGS
    if options.api_key:
        given.api_keys = [options.api_key]
    return given


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of the model repository")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--slots", type=int, default=MAX_SLOTS, help="requests at once")
    parser.add_argument("--embeddings", action="store_true", help="answer /v1/embeddings")
    parser.add_argument("--api-key", help="what requests must send as their bearer token")
    options = parser.parse_args()
    file, reason = weights(json.loads((options.folder / "1" / "model.json").read_text("utf-8")))
    if file is None:
        print(f"{options.folder.name} cannot be served: {reason}.", flush=True)
        return 1
    started = time.monotonic()
    size = file.stat().st_size / 1024**2
    print(f"loading {options.folder.name}: {file.name}, {size:.0f} MB", flush=True)
    # Its threads must not take the signals; they inherit this.
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        server = xllamacpp.Server(parameters(options.folder, file, options))
    except RuntimeError as error:
        print(f"llama.cpp cannot start: {error}", flush=True)
        return 1
    print(
        f"{server.listening_address} serves {options.folder.name} after {time.monotonic() - started:.1f} s", flush=True
    )
    signal.sigwait(signals)
    # Waits for no request in flight.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
