"""What slots held, kept on disk: one file a state, checked from end to end before llama.cpp reads it.

llama.cpp writes the front of a file itself; behind it stand our own record and a footer of fixed size:

    llama.cpp's body | token ids, 4 bytes each | model, format and kind as JSON | footer

A name is a digest of that JSON and one of the tokens, so states of another model, format or build are never opened.
Names are given last, and what stands under one never changes: any number of processes may use a folder.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Callable
from collections.abc import Sequence as Many
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from pathlib import Path
from time import time
from zlib import crc32

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import NoticeEvent

STATE, PART = ".state", ".part"
PREFIX = ".beginning"  # in the name of a state that many prompts begin with, so that no longer one replaces it
MAGIC = b"cerebrm1"
FOOTER = struct.Struct("<QIIII8s")  # bytes of body, tokens, bytes of JSON, checksums of body and record, MAGIC
CHECKED_TAIL = 12  # bytes at its end that the record's checksum cannot cover: itself and MAGIC
TOKEN_BYTES = 4  # bytes of a token id
STALE_PART_S = 3600  # seconds after which an unfinished file has no writer any more
CHUNK = 2**20

DAMAGED = NoticeEvent(
    "what was kept of a conversation is damaged, or not this model's",
    "the file is removed, and what it held is read again",
)

IsUsable = Callable[[int, int], bool]
"""Whether a state of so many tokens, of which so many are shared, is of use."""

Notify = Callable[[NoticeEvent], None]


@dataclass(frozen=True, slots=True)
class State:
    """A file that has been found whole, and the tokens a slot holds once it is loaded."""

    path: Path
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What stands behind the body of a file: its tokens, packed, and the body's length and checksum."""

    tokens: bytes
    body: int
    checksum: int


def ignore_notice(_: NoticeEvent) -> None:
    """Tell nobody: what is damaged is only of interest to whoever waits for it."""


class InvalidState(Exception):
    """A file is not what its name says."""


class StateStore:
    """The states of one model asked in one format, in a folder that holds at most `limit` bytes of anybody's."""

    def __init__(self, directory: Path, limit: int, model: str, format: str) -> None:
        self._directory = directory
        self._limit = limit
        self._model = model
        self._format = format
        self._known: dict[str, Record | None] = {}  # by name; None is of no use

    def find_longest(self, prompt: Many[int], kind: str, is_usable: IsUsable, notify: Notify) -> State | None:
        """Return the state that shares the longest beginning with a prompt, found whole; None if none fits.

        `kind` is the backend's word for build and types. Files that are damaged are told of and removed.
        """
        identity, packed_prompt = self._identity(kind), pack_tokens(prompt)
        while True:
            usable = self._usable(packed_prompt, identity, is_usable, notify)
            if not usable:
                return None
            name = max(usable, key=lambda name: (usable[name][0], -usable[name][1]))
            if state := self._verified(name, identity, notify):
                return state
            self._known[name] = None

    def stored_prefix(self, tokens: Many[int], kind: str, is_usable: IsUsable) -> int:
        """Return how many of these tokens a state would bring back."""
        usable = self._usable(pack_tokens(tokens), self._identity(kind), is_usable, ignore_notice)
        return max((shared for shared, _ in usable.values()), default=0)

    def write(
        self, tokens: Many[int], kind: str, size: int, save: Callable[[Path], None], is_prefix: bool = False
    ) -> None:
        """Keep a state of about `size` bytes, which `save` writes, and drop what it replaces and what is too much.

        A `beginning` is of many prompts: it neither replaces another nor is replaced. Raises EngineError if it cannot
        be written, and leaves nothing then; one larger than the limit is left out.
        """
        if size > self._limit:
            return
        identity, data = self._identity(kind), pack_tokens(tokens)
        path = self._directory / f"{digest(identity)}-{digest(data)}{PREFIX * is_prefix}{STATE}"
        try:
            self._directory.mkdir(0o700, parents=True, exist_ok=True)  # conversations are private
            self._write_atomically(path, identity, data, save)
        except OSError as error:
            raise write_error(self._directory, error.strerror or str(error)) from error
        self._known.pop(path.name, None)
        for name, record in self._records(identity, ignore_notice).items():
            is_replaced = len(record.tokens) < len(data) and data.startswith(record.tokens)
            if is_replaced and not (is_prefix or name.endswith(PREFIX + STATE)):
                remove_file(self._directory / name)
        self._evict(path.name)

    def discard(self, state: State, notify: Notify) -> None:
        """Remove a state that could not be loaded, unless it is gone already."""
        if state.path.exists():
            self._known[state.path.name] = None
            self._remove_damaged(state.path, notify)

    def _usable(
        self, packed_prompt: bytes, identity: bytes, is_usable: IsUsable, notify: Notify
    ) -> dict[str, tuple[int, int]]:
        """Return the states that fit, by name: how many tokens they share, and how many they have."""
        found = {}
        for name, record in self._records(identity, notify).items():
            shared, length = common_tokens(record.tokens, packed_prompt), len(record.tokens) // TOKEN_BYTES
            if shared and is_usable(length, shared):
                found[name] = (shared, length)
        return found

    def _records(self, identity: bytes, notify: Notify) -> dict[str, Record]:
        """Return the records of all files there are for this identity, by name; each is read but once."""
        start = f"{digest(identity)}-"
        names = [name for name in list_names(self._directory) if name.startswith(start) and name.endswith(STATE)]
        self._known = {
            name: self._known[name] if name in self._known else self._read_record(name, identity, notify)
            for name in names
        }
        return {name: record for name, record in self._known.items() if record}

    def _read_record(self, name: str, identity: bytes, notify: Notify) -> Record | None:
        path = self._directory / name
        try:
            with FileIO(path) as file:
                return read_record(file, identity)
        except InvalidState:
            self._remove_damaged(path, notify)
        except OSError:  # gone since it was listed, or not ours to read
            pass
        return None

    def _verified(self, name: str, identity: bytes, notify: Notify) -> State | None:
        """Return a state if its file is whole, and note its use."""
        path = self._directory / name
        try:
            with FileIO(path) as file:
                record = read_record(file, identity)
                if checksum(file, record.body) != record.checksum:
                    raise InvalidState
        except InvalidState:
            self._remove_damaged(path, notify)
            return None
        except OSError:
            return None
        with suppress(OSError):
            os.utime(path)
        return State(path, tuple(array("i", record.tokens)))

    def _remove_damaged(self, path: Path, notify: Notify) -> None:
        remove_file(path)
        notify(DAMAGED)

    def _write_atomically(self, path: Path, identity: bytes, tokens: bytes, save: Callable[[Path], None]) -> None:
        from tempfile import mkstemp

        handle, name = mkstemp(PART, dir=self._directory)  # readable for its owner alone
        os.close(handle)
        part = Path(name)
        try:
            save(part)
            append_record(part, identity, tokens)
            part.replace(path)
        finally:
            remove_file(part)

    def _evict(self, newest: str) -> None:
        """Remove the states used longest ago until the rest is within the limit, and what killed processes left."""
        states: list[tuple[float, str, int]] = []
        for name in list_names(self._directory):
            with suppress(OSError):
                status = (self._directory / name).stat()
                if name.endswith(STATE):
                    states.append((status.st_mtime, name, status.st_size))
                elif name.endswith(PART) and status.st_mtime < time() - STALE_PART_S:
                    remove_file(self._directory / name)
        total = sum(size for _, _, size in states)
        for _, name, size in sorted(states):
            if total > self._limit and name != newest:
                remove_file(self._directory / name)
                total -= size

    def _identity(self, kind: str) -> bytes:
        return json.dumps({"model": self._model, "format": self._format, "kind": kind}).encode()


def append_record(path: Path, identity: bytes, tokens: bytes) -> None:
    """Write our record behind the body that stands in a file."""
    body = path.stat().st_size
    with FileIO(path) as file:
        body_sum = checksum(file, body)
    figures = FOOTER.pack(body, len(tokens) // TOKEN_BYTES, len(identity), body_sum, 0, MAGIC)[:-CHECKED_TAIL]
    record = tokens + identity + figures
    with path.open("ab") as end:
        end.write(record + struct.pack("<I", crc32(record)) + MAGIC)


def read_record(file: FileIO, identity: bytes) -> Record:
    """Return the record at the end of a file; NoState if there is none that is whole, or it is of something else."""
    size = os.fstat(file.fileno()).st_size
    if size < FOOTER.size:
        raise InvalidState
    file.seek(size - FOOTER.size)
    footer = file.read(FOOTER.size)
    body, count, text, body_sum, record_sum, magic = FOOTER.unpack(footer)
    length = count * TOKEN_BYTES + text
    if magic != MAGIC or body + length + FOOTER.size != size:
        raise InvalidState
    file.seek(body)
    record = file.read(length)
    if crc32(footer[:-CHECKED_TAIL], crc32(record)) != record_sum or record[count * TOKEN_BYTES :] != identity:
        raise InvalidState
    return Record(record[: count * TOKEN_BYTES], body, body_sum)


def checksum(file: FileIO, length: int) -> int:
    """Return the CRC-32 of a file's first bytes: half the time of any hash in the standard library."""
    file.seek(0)
    buffer = memoryview(bytearray(CHUNK))
    value = 0
    while length and (count := file.readinto(buffer[: min(length, CHUNK)])):
        value = crc32(buffer[:count], value)
        length -= count
    return value


def common_tokens(a: bytes, b: bytes) -> int:
    """Return how many tokens two packed sequences have in common from their beginning, by halving."""
    same, different = 0, min(len(a), len(b))
    if a[:different] == b[:different]:
        return different // TOKEN_BYTES
    while different - same > 1:
        middle = (same + different) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            different = middle
    return same // TOKEN_BYTES


def pack_tokens(tokens: Many[int]) -> bytes:
    """Return token ids as bytes, in this machine's order, as llama.cpp's own are."""
    return array("i", tokens).tobytes()


def digest(data: bytes) -> str:
    """Return half a digest in letters a file's name can have."""
    return sha256(data).hexdigest()[:32]


def list_names(directory: Path) -> list[str]:
    """Return the names in a folder; none where it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def remove_file(path: Path) -> None:
    """Remove a file, if it is there and can be removed."""
    with suppress(OSError):
        path.unlink()


def write_error(directory: Path, reason: str) -> EngineError:
    """Return the error of a state that cannot be written."""
    return EngineError(f"{directory}: {reason}", "see that there is room, and that it can be written")
