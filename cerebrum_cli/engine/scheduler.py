"""Decide which sequence lives in which slot and which tokens the next step evaluates; compute nothing.

A slot remembers the tokens its memory holds after its sequence has ended, so the next prompt that begins alike is
continued instead of evaluated again. Prompts are read one at a time, in steps of their own: grouped reading would
change answers in the last bits with the number of slots. Who talks meanwhile waits for a bounded number of tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import count, islice, takewhile
from typing import NamedTuple

from cerebrum_cli.engine.backend import Row
from cerebrum_cli.engine.sequence import Sequence

SAYS = 256  # tokens there should be room for before one more sequence runs in a memory that is shared
READ_BETWEEN = 1024  # tokens of prompts that are read before those who talk say their next one


CELLS = count()  # so that no two cells have one number, whatever memory they were in


@dataclass(slots=True)
class Slot:
    """One place for a sequence: the tokens its memory holds, the cells they are in, and who lives there now.

    Where slots share one memory, the copy of a token is in the same cell.
    """

    index: int
    held: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    sequence: Sequence | None = None

    def read(self, tokens: Iterable[int]) -> None:
        """Record that these tokens have been evaluated here, or loaded."""
        self.held.extend(tokens)
        self.cells.extend(islice(CELLS, len(self.held) - len(self.cells)))

    def take(self, source: Slot, length: int) -> None:
        """Record that this slot holds as much of what another does, or of what it does itself."""
        self.held, self.cells = source.held[:length], source.cells[:length]

    def clear(self) -> None:
        """Record that nothing is held."""
        self.held, self.cells = [], []


class Admission(NamedTuple):
    """A sequence moves into `slot`, keeping the first `keep` tokens of what `source` holds."""

    sequence: Sequence
    slot: Slot
    source: Slot
    keep: int


class Step(NamedTuple):
    """The rows of one decode, and for each sequence in it how many are its own; `talks`: each says a token."""

    rows: list[Row]
    shares: list[tuple[Sequence, int]]
    talks: bool


class Scheduler:
    """The sequences waiting and running on a number of slots, of which `limit` may be lived in at once."""

    def __init__(self, slots: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.furnish(slots)

    def furnish(self, slots: int) -> None:
        """The memory is new: there are so many slots, and none holds anything."""
        self.slots = [Slot(index) for index in range(slots)]
        self.limit = slots
        self._read = 0

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have a slot, ascending by slot."""
        return [slot.sequence for slot in self.slots if slot.sequence]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not any(slot.sequence for slot in self.slots)

    def forget(self) -> None:
        """What the slots hold is unknown now."""
        for slot in self.slots:
            slot.clear()

    def fits(self, tokens: int, cells: int) -> bool:
        """Return whether a memory of so many cells, which the slots share, holds so many tokens more."""
        if sum(len(slot.cells) for slot in self.slots) + tokens <= cells:
            return True
        return len(set[int]().union(*(slot.cells for slot in self.slots))) + tokens <= cells

    def would_fit(self, sequence: Sequence, cells: int) -> bool:
        """Return whether it would, beside those who live in a slot, hold one more sequence and what it says next."""
        living = [slot for slot in self.slots if slot.sequence]
        used = len(set[int]().union(*(slot.cells for slot in living)))
        shared = max((common_prefix(slot.held, sequence.tokens) for slot in living), default=0)
        return used + sequence.length - shared + SAYS <= cells

    @property
    def idlest(self) -> Slot | None:
        """The slot that can best be cleared where memory is short: the highest free one that holds something."""
        return next((slot for slot in reversed(self._free) if slot.held), None)

    @property
    def room(self) -> int:
        """How many more sequences may run."""
        return min(self.limit, len(self.slots)) - len(self.running)

    @property
    def can_admit(self) -> bool:
        """Whether a sequence waits, there is room for it, and no prompt is still being read."""
        return bool(self.waiting) and self.room > 0 and not any(sequence.reading for sequence in self.running)

    @property
    def spare(self) -> Slot:
        """The free slot there is least to lose in: an empty one, the lowest."""
        return min(self._free, key=lambda slot: (len(slot.held) > 0, slot.index))

    def admit(self) -> Admission:
        """Return where the next waiting sequence goes.

        The slot that shares the longest beginning gives it. The last token is always evaluated: its logits choose the
        next one.
        """
        sequence = self.waiting[0]
        beginning = sequence.tokens[:-1]
        shared = {slot.index: common_prefix(slot.held, beginning) for slot in self.slots}
        source = max(self.slots, key=lambda slot: (shared[slot.index], not slot.sequence, -slot.index))
        keep = shared[source.index]
        if keep and not source.sequence:
            return Admission(sequence, source, source, keep)
        return Admission(sequence, self.spare, source, keep)

    def twins(self, read: Sequence) -> list[Admission]:
        """Return where samples of the prompt just read go, as far as there is room: they share all of it."""
        assert read.slot is not None
        source = self.slots[read.slot]
        twins = takewhile(lambda one: one.request is read.request and not one.generated, self.waiting)
        places = zip(range(self.room), twins, self._free, strict=False)
        return [Admission(twin, slot, source, len(read.prompt)) for _, twin, slot in places]

    def place(self, admission: Admission, kept: int) -> None:
        """Record an admission that has been carried out, with the tokens that could really be kept."""
        sequence, slot, source, _ = admission
        self.waiting.remove(sequence)
        slot.take(source, kept)
        slot.sequence = sequence
        sequence.slot = slot.index
        sequence.evaluated = kept
        if not sequence.generated:
            sequence.cached = kept

    def gap(self) -> tuple[Slot, Slot] | None:
        """Return the highest slot lived in and the lowest free one between such, if there is one.

        llama.cpp computes a step in one go only for slots that follow one another.
        """
        lived_in = [slot.index for slot in self.slots if slot.sequence]
        if not lived_in or lived_in[-1] - lived_in[0] == len(lived_in) - 1:
            return None
        free = next(slot for slot in self._free if slot.index > lived_in[0])
        return self.slots[lived_in[-1]], free

    def move(self, source: Slot, target: Slot) -> None:
        """Record that a sequence has moved, with what its slot held."""
        assert source.sequence is not None
        target.take(source, len(source.held))
        source.clear()
        target.sequence, source.sequence = source.sequence, None
        target.sequence.slot = target.index

    def schedule(self, stretch: Callable[[int], int]) -> Step:
        """Return the next step: some tokens of what one sequence reads, or one token of each that talks.

        `stretch` tells how many tokens may be read at once from a position on.
        """
        running = self.running
        reading = next((sequence for sequence in running if sequence.reading), None)
        talking = [(sequence, 1) for sequence in running if not sequence.reading]
        talks = reading is None or (bool(talking) and self._read >= READ_BETWEEN)
        if reading is None or talks:
            self._read, shares = 0, talking
        else:
            some = min(stretch(reading.evaluated), reading.length - reading.evaluated)
            self._read, shares = self._read + some, [(reading, some)]
        rows: list[Row] = []
        for sequence, some in shares:
            assert sequence.slot is not None
            last = sequence.length - 1
            for at in range(sequence.evaluated, sequence.evaluated + some):
                rows.append(Row(sequence.slot, at, sequence.token_at(at), at == last))
        return Step(rows, shares, talks)

    def evaluated(self, shares: Iterable[tuple[Sequence, int]]) -> None:
        """Record that so many further tokens of each sequence are in its slot's memory."""
        for sequence, some in shares:
            assert sequence.slot is not None
            begin = sequence.evaluated
            self.slots[sequence.slot].read(map(sequence.token_at, range(begin, begin + some)))
            sequence.evaluated += some

    def resume(self, sequence: Sequence, length: int) -> None:
        """Record that after an interrupted step the sequence's slot holds just its first `length` tokens."""
        assert sequence.slot is not None
        slot = self.slots[sequence.slot]
        slot.take(slot, min(length, len(slot.held)))
        slot.read(map(sequence.token_at, range(len(slot.held), length)))
        sequence.evaluated = length

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; its slot is free and keeps what it holds."""
        if sequence.slot is not None:
            self.slots[sequence.slot].sequence = None
            sequence.slot = None
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Have a sequence wait behind the others, with all it has said, for a slot where there is more room."""
        self.remove(sequence)
        sequence.evaluated = 0
        self.waiting.append(sequence)

    @property
    def _free(self) -> list[Slot]:
        return [slot for slot in self.slots if not slot.sequence]


def common_prefix(a: Many[int], b: Many[int]) -> int:
    """Return how many tokens two sequences have in common from their beginning."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))
