"""Files with the state of a sequence, as llama.cpp writes them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from cerebrum_cli.engine.llama.bindings import llama, log
from cerebrum_cli.engine.state_store import write_error


def save_state(handle: Any, slot: int, path: Path) -> None:
    log.problems.clear()
    written = llama.llama_state_seq_save_file(handle, os.fsencode(path), slot, None, 0)
    if written and path.stat().st_size == written:  # llama.cpp ignores write errors of fclose
        return
    errors = (line.rpartition("error: ")[2].strip() for line in log.problems)
    raise write_error(path.parent, next(errors, "") or "incomplete write")


def load_state(handle: Any, slot: int, path: Path) -> bool:
    """Load a state into a slot of a context; False if it is rejected or gone."""
    no_tokens = (llama.llama_token * 1)()
    count = ctypes.byref(ctypes.c_size_t())
    return bool(llama.llama_state_seq_load_file(handle, os.fsencode(path), slot, no_tokens, 0, count))
