"""Files with the state of a sequence: llama.cpp's, with the size of its last part at the end.

A state has a part for each memory of the model: a KV cache, then one of the layers with a sliding window, or recurrent
states. The part of a KV cache depends on the number of separate caches: after that number come, for each cache, the
number of the sequence's cells, which is 0 but for one, and the contents of those. A state from a context with another
number of caches is adapted before it is loaded.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

from cerebrum_cli.engine.llama.bindings import llama, log
from cerebrum_cli.engine.state_store import write_error

WHOLE, PARTIAL = 0, 1  # flags of a state: all of it, or only recurrent states and sliding windows
HEADER = 12  # bytes before the state: magic, version, number of tokens
MEMORY_HEADER = 8  # bytes that only a state in memory has
WORD = 4
SIZE = 8  # bytes of the size at the end


def save_state(handle: Any, slot: int, path: Path) -> None:
    log.problems.clear()
    written = llama.llama_state_seq_save_file(handle, os.fsencode(path), slot, None, 0)
    if not written or path.stat().st_size != written:  # llama.cpp ignores write errors of fclose
        problem = next((line.rpartition("error: ")[2].strip() for line in log.problems), "")
        raise write_error(path.parent, problem or "incomplete write")
    last_part = llama.llama_state_seq_get_size_ext(handle, slot, PARTIAL) - MEMORY_HEADER
    try:
        with path.open("ab") as file:
            file.write(last_part.to_bytes(SIZE, sys.byteorder))
    except OSError as error:
        raise write_error(path.parent, error.strerror or str(error)) from error


def load_state(handle: Any, slot: int, path: Path, caches: int, parts: Iterable[bool]) -> bool:
    """Load a state into a slot of a context with this number of caches; False if it is rejected or gone.

    `parts` are those of the model: whether each is of a KV cache.
    """
    try:
        adapt_state(path, caches, [*parts])
    except OSError:
        return False
    no_tokens, count = (llama.llama_token * 1)(), ctypes.byref(ctypes.c_size_t())
    return bool(llama.llama_state_seq_load_file(handle, os.fsencode(path), slot, no_tokens, 0, count))


def adapt_state(path: Path, caches: int, parts: list[bool]) -> None:
    """Rewrite a file that `save_state` wrote for another number of caches; not with three parts, which are rejected."""
    with path.open("rb") as file:
        magic, _, _, found = (int.from_bytes(file.read(WORD), sys.byteorder) for _ in range(4))
        if magic != llama.LLAMA_STATE_SEQ_MAGIC or found == caches or not parts[0] or len(parts) > 2:
            return
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data, memoryview(data) as state:
            end = len(state) - SIZE
            cut = end if len(parts) == 1 else end - int.from_bytes(state[end:], sys.byteorder)
            cut = cut if cut > HEADER else end  # all is in one part after all
            adapted = path.with_suffix(".adapted")
            with adapted.open("wb") as out:
                out.write(state[:HEADER])
                for is_cache, start, stop in zip(parts, (HEADER, cut), (cut, end), strict=False):
                    write_part(out, state[start:stop], caches if is_cache else 0)
    adapted.replace(path)


def write_part(out: BinaryIO, part: memoryview, caches: int) -> None:
    """Write a part of a state for this number of caches; 0 leaves it unchanged."""
    if caches:
        first, *cells = part[: WORD * (1 + int.from_bytes(part[:WORD], sys.byteorder))].cast("I")
        empty = next((index for index, count in enumerate(cells) if count), 0)
        part = part[WORD * (1 + empty) : len(part) - WORD * (first - 1 - empty)]
        out.write(caches.to_bytes(WORD, sys.byteorder))
    out.write(part)
    out.write(bytes(WORD * max(0, caches - 1)))
