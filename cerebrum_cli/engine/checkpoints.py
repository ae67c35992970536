"""States of sequences that are not in a slot now: checkpoints that slots return to, and those of preempted sequences.

A model with recurrent states or sliding windows cannot forget its last tokens, only return to a checkpoint. With one KV
cache, as in a chat, checkpoints are taken where a prompt continues an earlier one, and where its last question ends: a
template may drop what follows, such as the reasoning of the reply. With a cache for each slot, as in a batch, prompts
have no more than a prefix in common: there is one snapshot of it, which can be loaded into any slot.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.files import remove, work_directory
from cerebrum_cli.engine.backend import Backend, Checkpoint
from cerebrum_cli.engine.scheduler import Admission, Scheduler, Slot, Step, common_prefix, common_prefixes
from cerebrum_cli.engine.sequence import Sequence

MIN_SNAPSHOT_TOKENS = 64  # fewer are evaluated as fast
MAX_SNAPSHOT_BYTES = 256 * 2**20


class Snapshot(NamedTuple):
    """The whole state of a slot that held these tokens."""

    tokens: array[int]
    checkpoint: Checkpoint


class Checkpoints:
    """Takes and restores checkpoints of one context; each slot lists those of its own tokens."""

    def __init__(self, backend: Backend, scheduler: Scheduler) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._snapshot: Snapshot | None = None
        self._shared = 0  # first tokens of the prompt to admit that a slot has evaluated too
        self._before_step: tuple[int, Checkpoint] | None = None  # of a slot whose prompt is evaluated

    def reusable(self, slot: Slot, length: int) -> int:
        """Number of the first `length` tokens of a slot that it can be shortened to."""
        if length == len(slot.tokens) or length >= self._backend.context.trim_limit(slot.index):
            return length
        lengths = (checkpoint.length for checkpoint in slot.checkpoints)
        return max((held for held in lengths if held <= length), default=0)

    def slot_to_load(self) -> Slot | None:
        """Empty the free slot whose contents are the smallest loss, of those that no pending copy reads or writes."""
        free = self._scheduler.slots_to_overwrite
        slot = next((slot for slot in free if slot.index not in self._backend.context.pending_copies), None)
        if slot:
            slot.clear()
        return slot

    def rewind(self, slot: Slot, length: int, checkpoints: Iterable[Checkpoint]) -> int:
        """Shorten what llama.cpp holds in a slot to `length` tokens, or to a checkpoint before; the number left."""
        backend, held = self._backend, self._backend.context.length(slot.index)
        if length and held and (held <= length or backend.context.trim(slot.index, length)):
            return length
        usable = (checkpoint for checkpoint in checkpoints if checkpoint.length <= length)
        newest = max(usable, key=lambda checkpoint: checkpoint.length, default=None)
        if newest and backend.context.restore(slot.index, newest):
            return newest.length
        backend.context.clear(slot.index)
        return 0

    def resume(self, sequence: Sequence) -> None:
        """Use what a slot holds after an interrupted step, up to tokens whose logits are needed."""
        assert sequence.slot is not None
        slot = self._scheduler.slots[sequence.slot]
        checkpoints = list(slot.checkpoints)
        if self._before_step and self._before_step[0] == slot.index:
            checkpoints.append(self._before_step[1])
        length = min(self._backend.context.length(slot.index) or len(slot.tokens), sequence.first_output)
        self._scheduler.resume(sequence, self.rewind(slot, length, checkpoints))

    def plan(self, sequence: Sequence) -> None:
        """Take a checkpoint where an admitted prompt continues an earlier one, and decide where to take the next."""
        backend, sequence.checkpoint_at = self._backend, None
        if sequence.slot is None or sequence.generated:
            return
        slot, end = self._scheduler.slots[sequence.slot], sequence.first_output + 1 - sequence.request.opening
        if backend.checkpoint_budget:
            if 0 < sequence.evaluated < len(sequence.prompt):
                self._take(slot)
            sequence.checkpoint_at = end
        else:
            is_sampled_later = max(sequence.request.n, sequence.request.max_n) > len(self._scheduler.slots)
            shared = backend.reusable_prefix(end if is_sampled_later else self._shared)
            if shared - sequence.evaluated >= MIN_SNAPSHOT_TOKENS:
                sequence.checkpoint_at = shared

    def prepare(self, sequence: Sequence) -> None:
        """Load the snapshot into a free slot, where admission finds it, if it holds more of a prompt than any slot."""
        snapshot, scheduler = self._snapshot, self._scheduler
        if self._backend.checkpoint_budget or sequence.generated:
            return
        tokens = sequence.tokens[: sequence.first_output]
        shared = common_prefixes(scheduler.slots, tokens)
        self._shared = max(shared)
        if snapshot is None or common_prefix(snapshot.tokens, tokens) < len(snapshot.tokens):
            return
        pairs = zip(scheduler.slots, shared, strict=True)
        is_longest = all(self.reusable(slot, length) < len(snapshot.tokens) for slot, length in pairs)
        slot = self.slot_to_load() if is_longest else None
        if slot and self._backend.context.restore(slot.index, snapshot.checkpoint, is_whole=True):
            slot.extend(snapshot.tokens)

    def before_step(self, step: Step) -> None:
        """Copy the recurrent state of a prompt in progress: an interruption would leave it half updated."""
        self._before_step = None
        backend = self._backend
        if backend.trimmable_length or not backend.checkpoint_budget:
            return
        for share in step.shares:
            if share.sequence.is_prefilling and share.sequence.evaluated and share.sequence.slot is not None:
                self._before_step = share.sequence.slot, backend.context.checkpoint(share.sequence.slot)

    def after_step(self, sequence: Sequence) -> None:
        """Take the checkpoint that was planned here."""
        assert sequence.slot is not None
        backend, slot = self._backend, self._scheduler.slots[sequence.slot]
        if backend.checkpoint_budget:
            self._take(slot)
        elif (
            backend.context.state_size(slot.index) <= MAX_SNAPSHOT_BYTES
            and slot.index not in backend.context.pending_copies
        ):
            self._snapshot = Snapshot(array("i", slot.tokens), backend.context.checkpoint(slot.index, is_whole=True))

    def clear(self) -> None:
        """Forget the snapshot: the context that it was taken in is gone."""
        self._snapshot = self._before_step = None

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


class SwapSpace:
    """States of preempted sequences, which resume without evaluating anything again.

    They are in files, because sequences are preempted to make room for longer ones: in a directory that is created in
    `parent`, or else in the system's, when it is needed.
    """

    def __init__(self, backend: Backend, scheduler: Scheduler, checkpoints: Checkpoints, parent: Path | None) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._checkpoints = checkpoints
        self._parent = parent
        self._directory: Path | None = None
        self._names = count()
        self._resources = ExitStack()

    def save(self, sequence: Sequence) -> None:
        """Save the slot of a sequence that is about to be preempted; if that fails, it is evaluated again."""
        backend, slot = self._backend, sequence.slot
        self.discard(sequence)
        if slot is None or not backend.context.length(slot) or slot in backend.context.pending_copies:
            return
        try:
            if self._directory is None:
                import tempfile

                folder = work_directory(self._parent or Path(tempfile.gettempdir()), "cerebrum-swap")
                self._directory = self._resources.enter_context(folder)
            path = self._directory / f"{next(self._names)}.state"
            sequence.swapped = path
            backend.context.save_state(slot, path)
        except (OSError, EngineError):
            self.discard(sequence)

    def load(self, sequence: Sequence, path: Path) -> bool:
        """Admit a sequence to a free slot with its saved state; False if it has to be evaluated again."""
        slot = self._checkpoints.slot_to_load()
        if slot is None:
            return False
        is_loaded = self._backend.context.load_state(slot.index, path)
        self.discard(sequence)
        length = self._backend.context.length(slot.index)
        if not is_loaded or not 0 < length <= sequence.first_output:
            self._backend.context.clear(slot.index)
            return False
        slot.extend(sequence.tokens[:length])
        self._scheduler.admit(Admission(sequence, slot, slot, length), length)
        return True

    def discard(self, sequence: Sequence) -> None:
        if sequence.swapped:
            remove(sequence.swapped)
            sequence.swapped = None

    def close(self) -> None:
        self._resources.close()
