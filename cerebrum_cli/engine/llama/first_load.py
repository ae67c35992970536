"""Try a file for the first time in a child process, since llama.cpp aborts on some damaged or hostile files.

Files that passed are remembered by device, inode, size and modification time. Run as a module, this is the child: it
renders conversations with the chat template, then maps the file, converts text to tokens and back, and creates a small
context. With an adapter, it also decodes a token. A file with a template alone ends there: llama.cpp refuses it.
"""

from __future__ import annotations

import ctypes
import glob
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import CerebrumError, EngineError, ModelFileError
from cerebrum_cli.core.events import Emit, LoadEvent
from cerebrum_cli.core.files import cache_json, read_small_json
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.formats.choice import try_template

MAX_DATA_BYTES, MAX_CPU_S = 2 * 2**30, 20  # of the child: an honest file is mapped, and takes less than a second
MAX_CHECK_S = 5  # of CPU
OUT_OF_MEMORY = 3  # exit status of the child
CRASHES = {-getattr(signal, f"SIG{name}") for name in ("ABRT", "SEGV", "BUS", "FPE", "ILL", "XCPU")}
CHECK_FAILURES = {OUT_OF_MEMORY: "takes too much memory", -signal.SIGPROF: f"takes longer than {MAX_CHECK_S} s"}
TRUSTED = "choose one from a source you trust"
FIRST_PART = re.compile(r"(?<=-)00001(?=-of-\d{5}\.gguf$)")
LOADED_FILES = "loaded_files.json"
MAX_REMEMBERED = 1000
POLL_S = 0.01
BYTES = "".join(map(chr, range(256)))


def require_loads(
    path: Path, records: Path, stop: StopFlag, *, adapter: Path | None = None, emit: Emit = lambda _: None
) -> None:
    """Raise ModelFileError if llama.cpp crashes on a file that was not tried before, or its template takes too much.

    `records` is the directory with the list of files that passed. With an adapter, the error is about that, and the
    model has been tried before. Other failures are left to the load itself. Emits an event before the child starts,
    which may take seconds.
    """
    remembered = records / LOADED_FILES
    files = [path, adapter] if adapter else [path]
    key = " ".join(map(file_key, files))
    try:
        known = [str(key) for key in read_small_json(remembered)]
    except (OSError, ValueError, TypeError):
        known = []
    if key in known:
        return
    emit(LoadEvent(0.0))
    code, lines = _run_child([sys.executable, "-P", "-m", __name__, *map(str, files)], stop)
    if code in CRASHES:
        raise ModelFileError(files[-1], f"llama.cpp crashes on it: {_crash_reason(code, lines)}", TRUSTED)
    if code in CHECK_FAILURES:
        raise ModelFileError(path, f"its chat template {CHECK_FAILURES[code]}", TRUSTED)
    if code == 0:
        cache_json(remembered, [*known, key][-MAX_REMEMBERED:])


def file_key(path: Path) -> str:
    """Identity of a file's content, and of the other parts of its model, without reading it."""
    stats = [part.stat() for part in sorted(path.parent.glob(FIRST_PART.sub("*", glob.escape(path.name))))]
    return " ".join(f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def _run_child(command: list[str], stop: StopFlag) -> tuple[int, list[str]]:
    from cerebrum_cli.core.child_process import ChildProcess

    with TemporaryFile() as log, ChildProcess(command, stdout=log, stderr=log) as child:
        while (code := child.poll()) is None:
            if stop:
                raise EngineError("loading interrupted")
            time.sleep(POLL_S)
        log.seek(0)
        return code, log.read().decode(errors="replace").splitlines()


def _crash_reason(code: int, lines: list[str]) -> str:
    last = next((line for line in reversed(lines) if line.strip()), f"signal {-code}")
    return last.rpartition("/")[2].replace("what():", "").strip()


def limit_resources() -> None:
    """Limit memory and CPU time of this process, which SIGXCPU then ends: at the hard limit it would be SIGKILL."""
    import resource

    for limited, limit in ((resource.RLIMIT_DATA, MAX_DATA_BYTES), (resource.RLIMIT_CPU, MAX_CPU_S)):
        with suppress(ValueError, OSError):  # a lower limit is in force
            resource.setrlimit(limited, (limit, limit + 1))


def main(path: str, adapter: str = "") -> None:
    """Work of the child, within its limits; the system ends it when time is up."""
    limit_resources()
    signal.setitimer(signal.ITIMER_PROF, MAX_CHECK_S)
    try:
        try_template(Path(path))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    signal.setitimer(signal.ITIMER_PROF, 0)
    _load(path, adapter)
    os._exit(0)  # the system frees everything faster


def _load(path: str, adapter: str) -> None:
    from cerebrum_cli.engine.llama.bindings import llama, suppress_log
    from cerebrum_cli.engine.llama.vocabulary import LlamaVocabulary

    params = llama.llama_model_default_params()
    no_devices = (ctypes.c_void_p * 1)()  # drivers of GPUs may need more memory than the limit
    params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    params.use_extra_bufts = False
    with suppress_log():
        # With the vocabulary only and without, loading gets as far as it does not in the other way.
        for params.vocab_only in (True, False):
            model = llama.llama_model_load_from_file(os.fsencode(path), params)
            if model:
                vocabulary = LlamaVocabulary(model)
                with suppress(CerebrumError):  # every byte to tokens, and every token to bytes
                    vocabulary.tokenize([Text(BYTES), Text(BYTES)])
                    for token in range(vocabulary.size):
                        vocabulary.piece(token, special=True)
        if model:
            options = llama.llama_context_default_params()
            options.n_ctx, options.n_batch, options.n_ubatch = 256, 32, 32
            context = llama.llama_init_from_model(model, options)
            if context and adapter:
                _decode_with(context, model, adapter)


def _decode_with(context: Any, model: Any, path: str) -> None:
    """Decode a token with an adapter, since llama.cpp multiplies its matrices only then."""
    from cerebrum_cli.engine.llama.bindings import llama
    from cerebrum_cli.engine.llama.context import apply_adapters

    adapter = llama.llama_adapter_lora_init(model, os.fsencode(path))
    if adapter:
        apply_adapters(context, [(adapter, 1.0)])
        llama.llama_decode(context, llama.llama_batch_get_one((llama.llama_token * 1)(0), 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
