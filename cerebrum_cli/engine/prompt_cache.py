"""What earlier prompts leave for later ones: checkpoints of slots in memory, and states of slots on disk.

A model with recurrent states or sliding windows cannot forget its last tokens, only return to a checkpoint. With one KV
cache, as in a chat, checkpoints are taken where a prompt continues an earlier one, and where its last question ends: a
template may drop what follows, such as the reasoning of the reply. With a cache for each slot, as in a batch, prompts
have no more than a prefix in common: there is one snapshot of it, which can be loaded into any slot.

On disk, a state is restored before a prompt is admitted, and idle slots are saved on request. A file holds a state of a
slot, written by llama.cpp. Its name has a digest of the model, the prompt format and the kind of the state, and one of
the tokens, so states of others are never opened. Files are renamed into place and never change afterwards, so any
number of processes may share a directory.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence as Many
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
from cerebrum_cli.engine.scheduler import Scheduler, Slot, common_prefixes
from cerebrum_cli.engine.sequence import Sequence

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend
    from cerebrum_cli.engine.step import Checkpoint


VERSION = 3  # of the files
STATE = ".state"
HEAD = struct.Struct("=4sII")  # of llama.cpp: a magic number, a version, and the number of tokens, which follow
CHECKSUM = struct.Struct("=I")  # of all before: llama.cpp aborts on some damaged states, and accepts others
CHUNK = 2**20
MIN_SNAPSHOT_TOKENS = 64  # fewer are evaluated as fast
MAX_SNAPSHOT_BYTES = 256 * 2**20


class Checkpoints:
    """Takes and restores checkpoints of one context; each slot lists those of its own tokens."""

    def __init__(self, backend: Backend, scheduler: Scheduler) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._shared = 0  # first tokens of the prompt to admit that a slot has evaluated too

    def reusable(self, slot: Slot, length: int) -> int:
        """Number of the first `length` tokens of a slot that it can be shortened to."""
        if length == len(slot.tokens) or length >= self._backend.context.trim_limit(slot.index):
            return length
        return max((held.length for held in slot.checkpoints if held.length <= length), default=0)

    def slot_to_load(self) -> Slot | None:
        """Empty the free slot whose contents are the smallest loss, of those that no pending copy reads or writes."""
        free = self._scheduler.slots_to_overwrite
        slot = next((slot for slot in free if slot.index not in self._backend.context.pending_copies), None)
        if slot:
            slot.truncate(0)
        return slot

    def rewind(self, slot: Slot, length: int, checkpoints: Iterable[Checkpoint]) -> int:
        """Shorten what llama.cpp holds in a slot to `length` tokens, or to a checkpoint before; the number left."""
        backend = self._backend
        held = backend.context.length(slot.index)
        if length and held and (held <= length or backend.context.trim(slot.index, length)):
            return length
        usable = (checkpoint for checkpoint in checkpoints if checkpoint.length <= length)
        newest = max(usable, key=lambda checkpoint: checkpoint.length, default=None)
        if newest and backend.context.restore(slot.index, newest):
            return newest.length
        backend.context.clear(slot.index)
        return 0

    def resume(self, sequence: Sequence) -> None:
        """Use what a slot holds after an interrupted step, up to the token whose logits are needed."""
        slot = self._scheduler.slot_of(sequence)
        length = min(self._backend.context.length(slot.index) or len(slot.tokens), sequence.last_position)
        length = self.rewind(slot, length, slot.checkpoints)
        slot.truncate(length)
        self._scheduler.record_evaluated(sequence, sequence.tokens_from(len(slot.tokens), length - len(slot.tokens)))

    def plan(self, sequence: Sequence) -> None:
        """Take a checkpoint where an admitted prompt continues an earlier one, and decide where to take the next."""
        sequence.checkpoint_at = 0
        if sequence.generated:
            return
        slot = self._scheduler.slot_of(sequence)
        end = sequence.last_position + 1 - sequence.request.opening
        if self._backend.checkpoint_budget:
            if 0 < sequence.evaluated < len(sequence.prompt):
                self._take(slot)
            sequence.checkpoint_at = end
        else:
            is_sampled_later = max(sequence.request.ask.n, sequence.request.ask.max_n) > len(self._scheduler.slots)
            shared = self._backend.reusable_prefix(end if is_sampled_later else self._shared)
            if shared - sequence.evaluated >= MIN_SNAPSHOT_TOKENS:
                sequence.checkpoint_at = shared

    def prepare(self, sequence: Sequence) -> None:
        """Load the snapshot into a free slot, where admission finds it, if it holds more of a prompt than any slot."""
        if self._backend.checkpoint_budget or sequence.generated:
            return
        slots = self._scheduler.slots
        prompt = sequence.tokens[: sequence.last_position]
        shared = common_prefixes(slots, prompt)
        self._shared = max(shared)
        tokens, checkpoint = self._scheduler.snapshot or (array("i"), None)
        if checkpoint is None or common_prefix(tokens, prompt) < len(tokens):
            return
        is_longest = all(self.reusable(*pair) < len(tokens) for pair in zip(slots, shared, strict=True))
        slot = self.slot_to_load() if is_longest else None
        if slot and self._backend.context.restore(slot.index, checkpoint):
            slot.extend(tokens)

    def after_step(self, sequence: Sequence) -> None:
        backend = self._backend
        slot = self._scheduler.slot_of(sequence)
        if backend.checkpoint_budget:
            self._take(slot)
        elif (
            backend.context.state_size(slot.index) <= MAX_SNAPSHOT_BYTES
            and slot.index not in backend.context.pending_copies
        ):
            whole = backend.context.checkpoint(slot.index, is_whole=True)
            self._scheduler.snapshot = array("i", slot.tokens), whole

    def _take(self, slot: Slot) -> None:
        """Take a checkpoint of a slot, dropping others to stay within the budget: those of the least recently used."""
        if any(checkpoint.length == len(slot.tokens) for checkpoint in slot.checkpoints):
            return
        slot.checkpoints.append(self._backend.context.checkpoint(slot.index))
        slots = self._scheduler.slots

        def held_bytes() -> int:
            checkpoints = {id(checkpoint): checkpoint for slot in slots for checkpoint in slot.checkpoints}
            return sum(len(checkpoint.state) for checkpoint in checkpoints.values())

        for oldest in sorted(slots, key=lambda slot: slot.last_used):
            least = 1 if oldest is slot else 0  # the one just taken stays
            while len(oldest.checkpoints) > least and held_bytes() > self._backend.checkpoint_budget:
                oldest.checkpoints.pop(0)


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
