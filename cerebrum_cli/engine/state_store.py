"""State files of the prompt cache: one for each state of a slot, written by llama.cpp, with a checksum at the end.

The file name consists of a digest of the model, the prompt format and the kind of the state, and one of the tokens, so
states of others are never opened. Files are renamed into place and never change afterwards, so any number of processes
may share a directory.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence as Many
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.files import remove, remove_abandoned, unfinished_file
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import short_digest
from cerebrum_cli.core.token_ids import TOKEN_BYTES, pack_tokens

VERSION = 3  # of the files
STATE = ".state"
HEAD = struct.Struct("=4sII")  # of llama.cpp: a magic number, a version, and the number of tokens, which follow
CHECKSUM = struct.Struct("=I")  # of all before: llama.cpp aborts on some damaged states, and accepts others
CHUNK = 2**20


@frozen
class State:
    """A state file, and the tokens, packed, that a slot holds after loading it."""

    path: Path
    packed: bytes

    @property
    def length(self) -> int:
        return len(self.packed) // TOKEN_BYTES

    @property
    def tokens(self) -> array[int]:
        return array("i", self.packed)


@frozen
class StateStore:
    """States of one model in one prompt format, in a directory limited to `limit` bytes for all models."""

    directory: Path
    limit: int
    model: str
    format: str

    def states(self, kind: str) -> Iterator[State]:
        """All states of a kind, the backend's `state_kind`, whether intact or not."""
        for path in self.directory.glob(f"{self._prefix(kind)}*{STATE}"):
            if state := read_state(path):
                yield state

    def use(self, state: State) -> bool:
        """Whether a state is intact; it is then the last to be evicted. A damaged one is removed."""
        with suppress(OSError):  # another process may have removed it
            if is_intact(state.path):
                os.utime(state.path)
                return True
        remove(state.path)
        return False

    def write(self, tokens: Many[int], kind: str, save: Callable[[Path], None]) -> None:
        """Store a state that `save` writes to a file; delete the states it extends, and evict others.

        Raises EngineError, leaving no file, if writing fails.
        """
        packed = pack_tokens(tokens)
        path = self.directory / f"{self._prefix(kind)}{short_digest(packed)}{STATE}"
        try:
            self.directory.mkdir(0o700, parents=True, exist_ok=True)  # conversations are private
            remove_abandoned(self.directory)
            with unfinished_file(path) as part:
                save(part.path)
                append_checksum(part.path)
                part.path.replace(path)
        except OSError as error:
            raise write_error(self.directory, error.strerror or str(error)) from error
        for state in self.states(kind):
            if len(state.packed) < len(packed) and packed.startswith(state.packed):
                remove(state.path)
        self._evict(path)

    def _evict(self, newest: Path) -> None:
        """Remove the least recently used states of all models until they meet the limit."""
        files = []
        for path in self.directory.glob(f"*{STATE}"):
            with suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total > self.limit and path != newest:
                remove(path)
                total -= size

    def _prefix(self, kind: str) -> str:
        """How the names of files with this kind of states begin."""
        identity = {"version": VERSION, "model": self.model, "format": self.format, "kind": kind}
        return f"{short_digest(json.dumps(identity).encode())}-"


def read_state(path: Path) -> State | None:
    """Read the tokens of a state; None if the file is too short for them, unreadable or gone."""
    with suppress(OSError, struct.error), path.open("rb") as file:
        _, _, count = HEAD.unpack(file.read(HEAD.size))
        size = count * TOKEN_BYTES
        if HEAD.size + size <= path.stat().st_size:  # as many bytes as are read are allocated
            return State(path, file.read(size))
    return None


def append_checksum(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(checksum(file, path.stat().st_size))


def is_intact(path: Path) -> bool:
    with path.open("rb") as file:
        return checksum(file, path.stat().st_size - CHECKSUM.size) == file.read()


def checksum(file: BinaryIO, length: int) -> bytes:
    """CRC-32 of the next bytes of a file: twice as fast as any hash of the standard library."""
    value = 0
    while length > 0 and (data := file.read(min(length, CHUNK))):
        value = crc32(data, value)
        length -= len(data)
    return CHECKSUM.pack(value)


def write_error(directory: Path, reason: str) -> EngineError:
    return EngineError(f"{directory}: {reason}", "check its permissions and free disk space")
