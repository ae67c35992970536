"""State files of the prompt cache: one file for each state, with checksums verified before llama.cpp reads it.

llama.cpp writes the body; a record and a footer of fixed size follow:

    llama.cpp's body | token ids, 4 bytes each | model, format and kind as JSON | footer

The file name consists of a digest of that JSON and one of the tokens, so states of another model, format or build are
never opened. Files are renamed into place and never change afterwards, so any number of processes may share a
directory.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Callable
from collections.abc import Sequence as Many
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from io import FileIO
from pathlib import Path
from zlib import crc32

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import remove, remove_abandoned, unfinished_file
from cerebrum_cli.engine.sequence import TOKEN_BYTES, common_tokens, pack_tokens

STATE = ".state"
PREFIX = ".beginning"  # in the name of a common prefix, which longer states do not replace
MAGIC = b"cerebrm1"
FOOTER = struct.Struct("<QIIII8s")  # body size, token count, JSON size, checksums of body and record, MAGIC
TAIL_BYTES = 12  # the record's checksum and MAGIC, which the checksum does not cover
CHUNK = 2**20

DAMAGED = NoticeEvent(
    "a file of the prompt cache is damaged",
    "it was removed; the prompt is evaluated again",
)


# Whether a state is usable, by its length and the length of the common prefix.
IsUsable = Callable[[int, int], bool]

Notify = Callable[[NoticeEvent], None]


@dataclass(frozen=True, slots=True)
class State:
    """A state file: packed tokens that a slot holds after loading it, and the body's size and checksum."""

    path: Path
    packed: bytes
    body: int
    checksum: int

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(array("i", self.packed))


@dataclass(slots=True, eq=False)
class StateStore:
    """States of one model in one prompt format, in a directory limited to `limit` bytes for all models."""

    directory: Path
    limit: int
    model: str
    format: str
    _known: dict[str, State | None] = field(default_factory=dict, init=False)  # by file name; None if unusable

    @property
    def is_empty(self) -> bool:
        return not any(self.directory.glob(f"*{STATE}"))

    def find_longest(self, prompt: Many[int], kind: str, is_usable: IsUsable, notify: Notify) -> State | None:
        """Find and verify the usable state with the longest common prefix with a prompt; None if there is none.

        `kind` is the backend's `state_kind`. Damaged files are reported and removed.
        """
        packed = pack_tokens(prompt)
        while usable := self._usable(packed, kind, is_usable, notify):
            longest = max(usable, key=lambda state: (usable[state], -len(state.packed)))
            if self._read(longest.path, kind, notify, verifies=True):
                with suppress(OSError):
                    os.utime(longest.path)  # for eviction
                return longest
            self.reject(longest)
        return None

    def stored_prefix(self, tokens: Many[int], kind: str, is_usable: IsUsable) -> int:
        """Length of the longest prefix of these tokens that a usable state holds."""
        return max(self._usable(pack_tokens(tokens), kind, is_usable, lambda _: None).values(), default=0)

    def write(
        self, tokens: Many[int], kind: str, size: int, save: Callable[[Path], None], is_prefix: bool = False
    ) -> None:
        """Store a state of about `size` bytes, written by `save`; delete the states it extends, and evict others.

        A common prefix (`is_prefix`) neither replaces states nor is replaced. States larger than the limit are not
        stored. Raises EngineError, leaving no file, if writing fails.
        """
        if size > self.limit:
            return
        identity = self._identity(kind)
        data = pack_tokens(tokens)
        path = self.directory / f"{digest(identity)}-{digest(data)}{PREFIX if is_prefix else ''}{STATE}"
        try:
            self.directory.mkdir(0o700, parents=True, exist_ok=True)  # conversations are private
            with unfinished_file(path) as part:
                save(part.path)
                append_record(part.path, identity, data)
                part.path.replace(path)
        except OSError as error:
            raise write_error(self.directory, error.strerror or str(error)) from error
        self._known.pop(path.name, None)
        for state in self._states(kind, lambda _: None):
            is_replaced = len(state.packed) < len(data) and data.startswith(state.packed)
            if is_replaced and not (is_prefix or state.path.name.endswith(PREFIX + STATE)):
                remove(state.path)
        self._evict(path.name)

    def reject(self, state: State) -> None:
        """Ignore a state that llama.cpp did not load, such as one made with other options, from now on."""
        self._known[state.path.name] = None

    def _usable(self, packed: bytes, kind: str, is_usable: IsUsable, notify: Notify) -> dict[State, int]:
        usable = {}
        for state in self._states(kind, notify):
            shared = common_tokens(state.packed, packed)
            if shared and is_usable(len(state.packed) // TOKEN_BYTES, shared):
                usable[state] = shared
        return usable

    def _states(self, kind: str, notify: Notify) -> list[State]:
        """All states of this kind, each file being read only once; unfinished files of killed processes are removed."""
        remove_abandoned(self.directory)
        start = f"{digest(self._identity(kind))}-"
        names = [name for name in list_names(self.directory) if name.startswith(start) and name.endswith(STATE)]
        self._known = {
            name: self._known[name] if name in self._known else self._read(self.directory / name, kind, notify)
            for name in names
        }
        return [state for state in self._known.values() if state]

    def _read(self, path: Path, kind: str, notify: Notify, verifies: bool = False) -> State | None:
        """Read the record of a file, and verify the body's checksum; None if it is damaged, unreadable or gone."""
        try:
            with FileIO(path) as file:
                state = read_record(path, file, self._identity(kind))
                if state and not (verifies and checksum(file, state.body) != state.checksum):
                    return state
        except OSError:
            return None
        remove(path)
        notify(DAMAGED)
        return None

    def _evict(self, newest: str) -> None:
        """Remove least recently used states until they meet the limit together with the files being written."""
        files: list[tuple[float, str, int]] = []
        for name in list_names(self.directory):
            with suppress(OSError):
                status = (self.directory / name).stat()
                files.append((status.st_mtime, name, status.st_size))
        total = sum(size for _, _, size in files)
        for _, name, size in sorted(files):
            if total > self.limit and name.endswith(STATE) and name != newest:
                remove(self.directory / name)
                total -= size

    def _identity(self, kind: str) -> bytes:
        return json.dumps({"model": self.model, "format": self.format, "kind": kind}).encode()


def append_record(path: Path, identity: bytes, tokens: bytes) -> None:
    body = path.stat().st_size
    with FileIO(path) as file:
        body_sum = checksum(file, body)
    figures = FOOTER.pack(body, len(tokens) // TOKEN_BYTES, len(identity), body_sum, 0, MAGIC)[:-TAIL_BYTES]
    record = tokens + identity + figures
    with path.open("ab") as end:
        end.write(record + struct.pack("<I", crc32(record)) + MAGIC)


def read_record(path: Path, file: FileIO, identity: bytes | None = None) -> State | None:
    """Read the record at the end of a file; None if it is damaged, or has another identity than a given one."""
    size = os.fstat(file.fileno()).st_size
    if size < FOOTER.size:
        return None
    file.seek(size - FOOTER.size)
    footer = file.read(FOOTER.size)
    body, count, text, body_sum, record_sum, magic = FOOTER.unpack(footer)
    length = count * TOKEN_BYTES + text
    if magic != MAGIC or body + length + FOOTER.size != size:
        return None
    file.seek(body)
    record = file.read(length)
    tokens = record[: count * TOKEN_BYTES]
    found = record[count * TOKEN_BYTES :]
    if identity not in (None, found) or crc32(footer[:-TAIL_BYTES], crc32(record)) != record_sum:
        return None
    return State(path, tokens, body, body_sum)


def checksum(file: FileIO, length: int) -> int:
    """CRC-32 of the first bytes of a file: twice as fast as any hash of the standard library."""
    file.seek(0)
    buffer = memoryview(bytearray(CHUNK))
    value = 0
    while length and (count := file.readinto(buffer[: min(length, CHUNK)])):
        value = crc32(buffer[:count], value)
        length -= count
    return value


def digest(data: bytes) -> str:
    """First 128 bits of a SHA-256 digest in hexadecimal."""
    return sha256(data).hexdigest()[:32]


def list_names(directory: Path) -> list[str]:
    """List the file names in a directory; empty if it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def write_error(directory: Path, reason: str) -> EngineError:
    return EngineError(f"{directory}: {reason}", "check its permissions and free disk space")
