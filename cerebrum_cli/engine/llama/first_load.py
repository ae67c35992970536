"""Load a file for the first time in a child process, since llama.cpp aborts on some damaged or hostile files.

Files that loaded are remembered by device, inode, size and modification time. Run as a module, this is the child: it
runs the caller's check of the file, then maps the file, converts text to tokens and back, creates a small context and
decodes nothing. A file whose vocabulary alone is used is not mapped: it may have no weights. An adapter is loaded after
its model. A second child decodes several sequences, on which llama.cpp aborts for some architectures.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import CerebrumError, EngineError, FormatError, ModelFileError
from cerebrum_cli.core.files import atomic_write, read_small_json
from cerebrum_cli.engine.backend import StopFlag

if TYPE_CHECKING:
    from cerebrum_cli.engine.llama.vocabulary import LlamaVocabulary

MAX_DATA_BYTES, MAX_CPU_S = 2 * 2**30, 20  # of the child: an honest file is mapped, and takes less than a second
MAX_CHECK_S = 5  # of CPU
MAX_TRIAL_S = 20  # of several sequences; a large model that takes longer has not crashed
OUT_OF_MEMORY = 3  # exit status of the child
CRASHES = {-getattr(signal, f"SIG{name}") for name in ("ABRT", "SEGV", "BUS", "FPE", "ILL", "XCPU")}
CHECK_FAILURES = {OUT_OF_MEMORY: "takes too much memory", -signal.SIGPROF: f"takes longer than {MAX_CHECK_S} s"}
CHECKED_PART = "chat template"
TRUSTED, TRUSTED_TEXT = "pull it from a source you trust", "choose one from a source you trust"
FIRST_PART = re.compile(r"(.*)-00001-of-(\d{5})(\.gguf)")
MAX_REMEMBERED = 1000
POLL_S = 0.01
VOCABULARY = "vocabulary"  # argument of the child, and suffix of a key
ADAPTER = "adapter"  # argument of the child, before an adapter's path
TEXT = "text"  # argument of the child, which then only checks the file
SEVERAL = "several"  # argument of the child, and suffix of a key
SINGLE = "single"  # suffix of the key of a file whose model crashes with several sequences
N_SEQUENCES, N_UBATCH = 3, 32  # of the trial; the latter is no multiple of the former, on which some graphs depend


def require_loads(path: Path, remembered: Path, stop: StopFlag, vocabulary_only: bool = False, check: str = "") -> None:
    """Raise ModelFileError if a check fails, or llama.cpp crashes, on a file that was not loaded before.

    `check` is the dotted name of a function of the path, which the child calls first: it may take some seconds, and
    raises MemoryError if memory does not suffice. `remembered` is a JSON file with the files that loaded. Other
    failures are left to the load itself.
    """
    whole, known = file_key(path), _read_keys(remembered)
    key = f"{whole} {VOCABULARY}" if vocabulary_only else whole
    if key in known or whole in known:
        return
    code = _load_in_child(path, (check, path, VOCABULARY if vocabulary_only else ""), stop)
    if check and code in CHECK_FAILURES:
        raise ModelFileError(path, f"its {CHECKED_PART} {CHECK_FAILURES[code]}", TRUSTED)
    if code == 0:
        _remember(key, remembered)


def require_harmless(path: Path, text: str, remembered: Path, check: str) -> None:
    """Raise FormatError if a check fails on a file that llama.cpp does not load, unless it passed with this text."""
    key = f"{sha256(text.encode()).hexdigest()} {CHECKED_PART}"
    if key in _read_keys(remembered):
        return
    code, _ = _run_child((check, path, TEXT), StopFlag())
    if code:
        raise FormatError(f"{path}: the {CHECKED_PART} {CHECK_FAILURES.get(code, 'cannot be tried')}", TRUSTED_TEXT)
    _remember(key, remembered)


def require_adapter_loads(adapter: Path, model: Path, remembered: Path, stop: StopFlag) -> None:
    """Raise ModelFileError if llama.cpp crashes on an adapter that it has not loaded for this model before."""
    key = f"{file_key(adapter)} {ADAPTER} {file_key(model)}"
    if key not in _read_keys(remembered) and _load_in_child(adapter, ("", model, ADAPTER, adapter), stop) == 0:
        _remember(key, remembered)


def runs_several(path: Path, remembered: Path, stop: StopFlag) -> bool:
    """Whether llama.cpp decodes several sequences of a loadable model without crashing; tried once per file."""
    whole, known = file_key(path), _read_keys(remembered)
    if f"{whole} {SEVERAL}" in known or f"{whole} {SINGLE}" in known:
        return f"{whole} {SEVERAL}" in known
    code, _ = _run_child(("", path, SEVERAL), stop)
    is_sound = code not in CRASHES or code == -signal.SIGXCPU
    _remember(f"{whole} {SEVERAL if is_sound else SINGLE}", remembered)
    return is_sound


def file_key(path: Path) -> str:
    """Identity of a file's content, and of the other parts of its model, without reading it."""
    paths = [path]
    if first := FIRST_PART.fullmatch(path.name):
        paths = [path.with_name(f"{first[1]}-{n + 1:05}-of-{first[2]}{first[3]}") for n in range(int(first[2]))]
    stats = (part.stat() for part in paths if part.exists())
    return " ".join(f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def _read_keys(remembered: Path) -> list[str]:
    try:
        return [str(key) for key in read_small_json(remembered)]
    except (OSError, ValueError, TypeError):
        return []


def _remember(key: str, remembered: Path) -> None:
    keys = [*_read_keys(remembered), key]
    with contextlib.suppress(OSError):
        remembered.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(remembered, json.dumps(keys[-MAX_REMEMBERED:]).encode())


def _load_in_child(path: Path, arguments: Sequence[Path | str], stop: StopFlag) -> int:
    """Exit status of a child that loads a file. Raises ModelFileError if it crashes."""
    code, lines = _run_child(arguments, stop)
    if code in CRASHES:
        reason = next((line for line in reversed(lines) if line.strip()), f"signal {-code}")
        reason = reason.rpartition("/")[2].replace("what():", "").strip()
        raise ModelFileError(path, f"llama.cpp crashes on it: {reason}", TRUSTED)
    return code


def _run_child(arguments: Sequence[Path | str], stop: StopFlag) -> tuple[int, list[str]]:
    """Exit status of a child, and the lines it printed."""
    import subprocess

    with TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, *arguments],  # -P: do not import modules from the current directory
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C interrupts only the parent, which then kills the child
        )
        try:
            while (code := child.poll()) is None:
                if stop:
                    raise EngineError("loading interrupted")
                time.sleep(POLL_S)
        finally:
            child.kill()
            child.wait()
        log.seek(0)
        return code, log.read().decode("utf-8", "replace").splitlines()


def limit_resources() -> None:
    """Limit memory and CPU time of this process, which SIGXCPU then ends: at the hard limit it would be SIGKILL."""
    import resource

    for limited, limit in ((resource.RLIMIT_DATA, MAX_DATA_BYTES), (resource.RLIMIT_CPU, MAX_CPU_S)):
        with contextlib.suppress(ValueError, OSError):  # a lower limit is in force
            resource.setrlimit(limited, (limit, limit + 1))


def _try_and_load(check: str, path: str, kind: str = "", adapter: str = "") -> None:
    """Work of the child, within its limits; the system ends it when time is up."""
    limit_resources()
    if check:
        module, _, function = check.rpartition(".")
        signal.setitimer(signal.ITIMER_PROF, MAX_CHECK_S)
        try:
            getattr(importlib.import_module(module), function)(Path(path))
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
    if kind == TEXT:
        os._exit(0)
    if kind == SEVERAL:
        signal.alarm(MAX_TRIAL_S)
    _load(path, kind, adapter)


def _load(path: str, kind: str, adapter: str) -> None:
    from cerebrum_cli.engine.llama.bindings import llama, suppress_log
    from cerebrum_cli.engine.llama.vocabulary import LlamaVocabulary

    params = llama.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    with suppress_log():
        # With the vocabulary only and without, loading gets as far as it does not in the other way.
        for params.vocab_only in {VOCABULARY: (True,), SEVERAL: (False,)}.get(kind, (True, False)):
            model = llama.llama_model_load_from_file(os.fsencode(path), params)
            if model and kind != SEVERAL:
                _use_vocabulary(LlamaVocabulary(model))
        if model and adapter:
            llama.llama_adapter_lora_init(model, os.fsencode(adapter))
        elif model and kind == SEVERAL:
            _decode_several(model)
        elif model and not kind:
            _create_context(model, 1)
    os._exit(0)  # the system frees everything faster


def _create_context(model: Any, n_sequences: int) -> Any:
    from cerebrum_cli.engine.llama.bindings import llama

    options = llama.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = 256 * n_sequences, N_UBATCH, N_UBATCH
    options.n_seq_max = n_sequences
    return llama.llama_init_from_model(model, options)


def _decode_several(model: Any) -> None:
    """Decode a token of each sequence, then one of all but the first: their states are not the first ones then."""
    from cerebrum_cli.engine.llama.bindings import llama

    context, batch = _create_context(model, N_SEQUENCES), llama.llama_batch_init(N_UBATCH, 0, 1)
    for position, sequences in enumerate((range(N_SEQUENCES), range(1, N_SEQUENCES))):
        batch.n_tokens = len(sequences)
        for row, sequence in enumerate(sequences):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = 0, position, 1
            batch.seq_id[row][0], batch.logits[row] = sequence, True
        if context:
            llama.llama_decode(context, batch)


def _use_vocabulary(vocabulary: LlamaVocabulary) -> None:
    """Convert every byte to tokens, and every token to bytes."""
    text = "".join(map(chr, range(256)))
    with contextlib.suppress(CerebrumError):
        vocabulary.tokenize([Text(text), Text(text, trusted=False)])
        for token in range(vocabulary.size):
            vocabulary.piece(token, special=True)


if __name__ == "__main__":
    _try_and_load(*sys.argv[1:])
