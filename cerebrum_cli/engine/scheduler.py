"""Decide which sequence lives in which slot and which tokens the next step evaluates; compute nothing.

A slot remembers the tokens its memory holds after its sequence has ended, so the next prompt that begins
alike is continued instead of evaluated again. Prompts are read one at a time, in steps of their own: grouped
reading would change answers in the last bits with the number of slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import NamedTuple

from cerebrum_cli.engine.backend import Row
from cerebrum_cli.engine.sequence import Sequence


@dataclass(slots=True)
class Slot:
    """One place for a sequence: what its memory holds, and who lives there now."""

    index: int
    held: list[int] = field(default_factory=list)
    sequence: Sequence | None = None


class Admission(NamedTuple):
    """A sequence moves into `slot`, keeping the first `keep` tokens of what `source` holds."""

    sequence: Sequence
    slot: Slot
    source: Slot
    keep: int


class Step(NamedTuple):
    """The rows of one decode, and for each sequence in it how many are its own."""

    rows: list[Row]
    shares: list[tuple[Sequence, int]]


class Scheduler:
    """The sequences waiting and running on a fixed number of slots."""

    def __init__(self, slots: int) -> None:
        self.slots = [Slot(index) for index in range(slots)]
        self.waiting: deque[Sequence] = deque()

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have a slot, ascending by slot."""
        return [slot.sequence for slot in self.slots if slot.sequence]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not any(slot.sequence for slot in self.slots)

    def forget(self) -> None:
        """The memory is new: no slot holds anything."""
        for slot in self.slots:
            slot.held.clear()

    @property
    def can_admit(self) -> bool:
        """Whether a sequence waits, a slot is free, and no prompt is still being read."""
        if not self.waiting or all(slot.sequence for slot in self.slots):
            return False
        return not any(sequence.reading for sequence in self.running)

    @property
    def spare(self) -> Slot:
        """The free slot there is least to lose in: an empty one, the lowest."""
        free = [slot for slot in self.slots if not slot.sequence]
        return min(free, key=lambda slot: (len(slot.held) > 0, slot.index))

    def admit(self) -> Admission:
        """Return where the next waiting sequence goes.

        The slot that shares the longest beginning gives it. The last prompt token is always evaluated:
        its logits choose the first token of the reply.
        """
        sequence = self.waiting[0]
        shared = {slot.index: common_prefix(slot.held, sequence.prompt[:-1]) for slot in self.slots}
        source = max(self.slots, key=lambda slot: (shared[slot.index], not slot.sequence, -slot.index))
        keep = shared[source.index]
        if keep and not source.sequence:
            return Admission(sequence, source, source, keep)
        return Admission(sequence, self.spare, source, keep)

    def twins(self, read: Sequence) -> list[Admission]:
        """Return where samples of the prompt just read go, as far as slots are free: they share all of it."""
        free = [slot for slot in self.slots if not slot.sequence]
        assert read.slot is not None
        source = self.slots[read.slot]
        twins = [waiting for waiting in self.waiting if waiting.request is read.request]
        return [Admission(twin, slot, source, len(read.prompt)) for twin, slot in zip(twins, free, strict=False)]

    def place(self, admission: Admission, kept: int) -> None:
        """Record an admission that has been carried out, with the tokens that could really be kept."""
        sequence, slot, source, _ = admission
        self.waiting.remove(sequence)
        slot.held = source.held[:kept]
        slot.sequence = sequence
        sequence.slot = slot.index
        sequence.evaluated = sequence.cached = kept

    def schedule(self, batch_size: int) -> Step:
        """Return the next step: a stretch of what one sequence reads, or one token of each that talks."""
        running = self.running
        reading = next((sequence for sequence in running if sequence.reading), None)
        if reading is None:
            shares = [(sequence, 1) for sequence in running]
        else:
            shares = [(reading, min(batch_size, reading.length - reading.evaluated))]
        rows: list[Row] = []
        for sequence, count in shares:
            assert sequence.slot is not None
            last = sequence.length - 1
            for at in range(sequence.evaluated, sequence.evaluated + count):
                rows.append(Row(sequence.slot, at, sequence.token_at(at), at == last))
        return Step(rows, shares)

    def evaluated(self, shares: Iterable[tuple[Sequence, int]]) -> None:
        """Record that so many further tokens of each sequence are in its slot's memory."""
        for sequence, count in shares:
            assert sequence.slot is not None
            held = self.slots[sequence.slot].held
            held.extend(sequence.token_at(sequence.evaluated + i) for i in range(count))
            sequence.evaluated += count

    def resume(self, sequence: Sequence, length: int) -> None:
        """Record that after an interrupted step the sequence's slot holds just its first `length` tokens."""
        assert sequence.slot is not None
        self.slots[sequence.slot].held = [sequence.token_at(position) for position in range(length)]
        sequence.evaluated = length

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; its slot is free and keeps what it holds."""
        if sequence.slot is not None:
            self.slots[sequence.slot].sequence = None
            sequence.slot = None
        elif sequence in self.waiting:
            self.waiting.remove(sequence)


def common_prefix(a: Many[int], b: Many[int]) -> int:
    """Return how many tokens two sequences have in common from their beginning."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))
