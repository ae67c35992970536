"""State files of the prompt cache: one file for each state, with a checksum verified before llama.cpp reads it.

llama.cpp writes a file with the tokens and the state; a footer follows. The file name consists of a digest of the
model, the format and the kind of the state, and one of the tokens, so states of others are never opened. Files are
renamed into place and never change afterwards, so any number of processes may share a directory.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import NoticeEvent, OnNotice
from cerebrum_cli.core.files import remove, remove_abandoned, unfinished_file
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import short_digest
from cerebrum_cli.core.token_ids import TOKEN_BYTES, TokenIds, common_tokens, pack_tokens

STATE = ".state"
HEAD = struct.Struct("=4sII")  # of llama.cpp: a magic number, a version, and the number of tokens, which follow
FOOTER = struct.Struct("=I8s")  # checksum of all before, and MAGIC
MAGIC = b"cerebrm2"
CHUNK = 2**20

DAMAGED = NoticeEvent(
    "a file of the prompt cache is damaged",
    "it was removed; the prompt is evaluated again",
)


# Whether a state is usable, by its length and the length of the common prefix.
IsUsable = Callable[[int, int], bool]


@frozen
class State:
    """A state file, and the packed tokens that a slot holds after loading it."""

    path: Path
    packed: bytes

    @property
    def tokens(self) -> TokenIds:
        return tuple(array("i", self.packed))


@dataclass(slots=True, eq=False)
class StateStore:
    """States of one model in one prompt format, in a directory limited to `limit` bytes for all models."""

    directory: Path
    limit: int
    model: str
    format: str
    _known: dict[str, State | None] = field(default_factory=dict)  # by file name; None if unusable

    def find_longest(self, prompt: Many[int], kind: str, is_usable: IsUsable, notify: OnNotice) -> State | None:
        """Find and verify the usable state with the longest common prefix with a prompt; None if there is none.

        `kind` is the backend's `state_kind`. Damaged files are reported and removed.
        """
        packed = pack_tokens(prompt)
        while usable := self._usable(packed, kind, is_usable):
            longest = max(usable, key=lambda state: (usable[state], -len(state.packed)))
            with suppress(OSError):  # another process may have removed it
                if is_intact(longest.path):
                    os.utime(longest.path)  # for eviction
                    return longest
                remove(longest.path)
                notify(DAMAGED)
            self.reject(longest)
        return None

    def stored_prefix(self, tokens: Many[int], kind: str, is_usable: IsUsable) -> int:
        """Length of the longest prefix of these tokens that a usable state holds."""
        return max(self._usable(pack_tokens(tokens), kind, is_usable).values(), default=0)

    def write(self, tokens: Many[int], kind: str, size: int, save: Callable[[Path], None]) -> None:
        """Store a state of about `size` bytes, written by `save`; delete the states it extends, and evict others.

        States larger than the limit are not stored. Raises EngineError, leaving no file, if writing fails.
        """
        if size > self.limit:
            return
        packed = pack_tokens(tokens)
        path = self.directory / f"{self._prefix(kind)}{short_digest(packed)}{STATE}"
        try:
            self.directory.mkdir(0o700, parents=True, exist_ok=True)  # conversations are private
            with unfinished_file(path) as part:
                save(part.path)
                append_checksum(part.path)
                part.path.replace(path)
        except OSError as error:
            raise write_error(self.directory, error.strerror or str(error)) from error
        self._known.pop(path.name, None)
        for state in self._states(kind):
            if len(state.packed) < len(packed) and packed.startswith(state.packed):
                remove(state.path)
        self._evict(path)

    def reject(self, state: State) -> None:
        """Ignore a state that llama.cpp did not load, such as one made with other options, from now on."""
        self._known[state.path.name] = None

    def _usable(self, packed: bytes, kind: str, is_usable: IsUsable) -> dict[State, int]:
        usable = {}
        for state in self._states(kind):
            shared = common_tokens(state.packed, packed)
            if shared and is_usable(len(state.packed) // TOKEN_BYTES, shared):
                usable[state] = shared
        return usable

    def _states(self, kind: str) -> Iterator[State]:
        """All states of this kind, each file being read only once; unfinished files of killed processes are removed."""
        remove_abandoned(self.directory)
        for path in self.directory.glob(f"{self._prefix(kind)}*{STATE}"):
            if path.name not in self._known:
                self._known[path.name] = read_state(path)
            if state := self._known[path.name]:
                yield state

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
        identity = {"model": self.model, "format": self.format, "kind": kind}
        return f"{short_digest(json.dumps(identity).encode())}-"


def read_state(path: Path) -> State | None:
    """Read the tokens of a state; None if the file is too short for them, unreadable or gone."""
    with suppress(OSError, struct.error), path.open("rb") as file:
        _, _, count = HEAD.unpack(file.read(HEAD.size))
        packed = file.read(count * TOKEN_BYTES)
        if len(packed) == count * TOKEN_BYTES:
            return State(path, packed)
    return None


def append_checksum(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(footer(file, path.stat().st_size))


def is_intact(path: Path) -> bool:
    length = path.stat().st_size - FOOTER.size
    with path.open("rb") as file:
        return length > 0 and footer(file, length) == file.read()


def footer(file: BinaryIO, length: int) -> bytes:
    """Footer for the next bytes of a file, by CRC-32: twice as fast as any hash of the standard library."""
    value = 0
    while length and (data := file.read(min(length, CHUNK))):
        value = crc32(data, value)
        length -= len(data)
    return FOOTER.pack(value, MAGIC)


def write_error(directory: Path, reason: str) -> EngineError:
    return EngineError(f"{directory}: {reason}", "check its permissions and free disk space")
