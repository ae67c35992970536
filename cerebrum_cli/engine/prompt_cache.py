"""The prompt cache on disk: a state is restored before a prompt is admitted, and idle slots are saved on request.

A file holds a state of a slot, written by llama.cpp. Its name has a digest of the model, the prompt format and the kind
of the state, and one of the tokens, so states of others are never opened. Files are renamed into place and never change
afterwards, so any number of processes may share a directory.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence as Many
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from zlib import crc32

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.files import remove, remove_abandoned, unfinished_file
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import short_digest
from cerebrum_cli.core.token_ids import TOKEN_BYTES, TokenIds, common_prefix, common_tokens, pack_tokens
from cerebrum_cli.engine.context_checkpoints import Checkpoints
from cerebrum_cli.engine.scheduler import Scheduler, Slot, common_prefixes
from cerebrum_cli.engine.sequence import Sequence

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend


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


MIN_SAVED_TOKENS = 16  # fewer are evaluated as fast as a state is found
MAX_READ_RATIO = 16  # tokens read for each token saved: reading takes about a twentieth of evaluating


@frozen
class PromptCache:
    """The states in a store that fit the slots of one context."""

    backend: Backend
    scheduler: Scheduler
    checkpoints: Checkpoints
    store: StateStore

    def find(self, sequence: Sequence, needs_memory: bool) -> State | None:
        """Find the state that saves a waiting sequence the most tokens, if it is worth loading.

        With `needs_memory`, memory is about to be allocated and can be of any size. Otherwise the state must fit:
        growing the memory would empty the slots of others.
        """
        backend = self.backend
        prompt = sequence.prompt[: sequence.last_position]
        slots = [] if needs_memory else self.scheduler.slots
        held = max(common_prefixes(slots, prompt, self.checkpoints.reusable), default=0)
        if len(prompt) - held < MIN_SAVED_TOKENS:
            return None
        state, shared = self._longest(prompt, backend.context_size if needs_memory else backend.capacity)
        if state and shared - held >= max(MIN_SAVED_TOKENS, state.length // MAX_READ_RATIO):
            return state
        return None

    def restore(self, state: State) -> None:
        """Load a state into a free slot, where admission will find it; not if copies of all of those are pending.

        One that is damaged, or that llama.cpp rejects, is removed.
        """
        slot = self.checkpoints.slot_to_load()
        if slot is None or not self.store.use(state):
            return
        context = self.backend.context
        if context.load_state(slot.index, state.path) and context.length(slot.index) == state.length:
            slot.extend(state.tokens)
        else:
            context.clear(slot.index)
            remove(state.path)

    def save(self, min_tokens: int, prompt: TokenIds | None = None) -> None:
        """Save and empty idle slots with at least `min_tokens` tokens in no state yet; with a prompt, the best match.

        In a unified cache, what idle slots hold slows down others.
        """
        idle = [slot for slot in self._idle_slots() if len(slot.tokens) >= min_tokens]
        if prompt is not None and idle:
            idle = [max(idle, key=lambda slot: common_prefix(slot.tokens, prompt))]
        for slot in sorted(idle, key=lambda slot: -len(slot.tokens)):
            if self._count_unsaved(slot.tokens) >= min_tokens:
                self._write(slot)
                if slot.checkpoints:  # memory that cannot be trimmed: what a retry, or the next prompt, returns to
                    newest = slot.checkpoints[-1]
                    slot.truncate(newest.length if self.backend.context.restore(slot.index, newest) else 0)
                    self._write(slot)
            if self._count_unsaved(slot.tokens) < min_tokens:
                self.backend.context.clear(slot.index)
                slot.truncate(0)

    def save_prefix(self, tokens: TokenIds) -> None:
        """Save a common prefix of prompts from an idle slot, which drops the rest, unless a state has it already."""
        if not self._count_unsaved(tokens):
            return
        slot = next((slot for slot in self._idle_slots() if common_prefix(slot.tokens, tokens) == len(tokens)), None)
        if slot and self.backend.context.trim(slot.index, len(tokens)):
            slot.truncate(len(tokens))
            self._write(slot)

    def _longest(self, tokens: Many[int], max_length: int) -> tuple[State | None, int]:
        """The state with the longest common prefix with tokens, and the length of that; the shortest of several.

        It has at most `max_length` tokens, and memory can be trimmed to the prefix.
        """
        backend = self.backend
        packed = pack_tokens(tokens)
        found: tuple[State | None, int] = None, 0
        for state in sorted(self.store.states(backend.state_kind or ""), key=lambda state: state.length):
            shared = common_tokens(state.packed, packed)
            is_trimmable = state.length == shared or state.length <= backend.trimmable_length
            if shared > found[1] and state.length <= max_length and is_trimmable:
                found = state, shared
        return found

    def _idle_slots(self) -> list[Slot]:
        if self.backend.state_kind is None:
            return []
        # a difference in length was never seen, but a mislabeled state would give wrong answers from then on
        return [
            slot
            for slot in self.scheduler.free_slots
            if slot.tokens
            and self.backend.context.length(slot.index) == len(slot.tokens)
            and slot.index not in self.backend.context.pending_copies
        ]

    def _count_unsaved(self, tokens: Many[int]) -> int:
        """Number of tokens that no state holds which fits the largest context and can be trimmed to these."""
        return len(tokens) - self._longest(tokens, self.backend.context_size)[1]

    def _write(self, slot: Slot) -> None:
        context = self.backend.context
        kind = self.backend.state_kind
        if kind and slot.tokens and context.state_size(slot.index) <= self.store.limit:
            self.store.write(slot.tokens, kind, partial(context.save_state, slot.index, slot.tokens))
