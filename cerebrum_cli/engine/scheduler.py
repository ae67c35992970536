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

MIN_FREE_CELLS = 256  # tokens there should be room for before one more sequence runs in a memory that is shared
MAX_PREFILL_BETWEEN_DECODES = 1024  # tokens of prompts that are read before those who talk say their next one


CELL_IDS = count()  # so that no two cells have one number, whatever memory they were in


@dataclass(slots=True)
class Slot:
    """One place for a sequence: the tokens its memory holds, the cells they are in, and who lives there now.

    Where slots share one memory, the copy of a token is in the same cell.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    sequence: Sequence | None = None

    def extend(self, more: Iterable[int]) -> None:
        """Record that these tokens have been evaluated here, or loaded."""
        self.tokens.extend(more)
        self.cells.extend(islice(CELL_IDS, len(self.tokens) - len(self.cells)))

    def copy_prefix(self, source: Slot, length: int) -> None:
        """Record that this slot holds as much of what another does, or of what it does itself."""
        self.tokens, self.cells = source.tokens[:length], source.cells[:length]

    def clear(self) -> None:
        """Record that nothing is held."""
        self.tokens, self.cells = [], []


class Admission(NamedTuple):
    """A sequence moves into `slot`, keeping the first `keep` tokens of what `source` holds."""

    sequence: Sequence
    slot: Slot
    source: Slot
    prefix_length: int


class Step(NamedTuple):
    """The rows of one decode, and for each sequence in it how many are its own; `talks`: each says a token."""

    rows: list[Row]
    scheduled: list[tuple[Sequence, int]]
    is_decode: bool


class Scheduler:
    """The sequences waiting and running on a number of slots, of which `limit` may be lived in at once."""

    def __init__(self, slots: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.reset_slots(slots)

    def reset_slots(self, slots: int) -> None:
        """The memory is new: there are so many slots, and none holds anything."""
        self.slots = [Slot(index) for index in range(slots)]
        self.limit = slots
        self._prefilled = 0

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have a slot, ascending by slot."""
        return [slot.sequence for slot in self.slots if slot.sequence]

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not any(slot.sequence for slot in self.slots)

    def clear_slots(self) -> None:
        """What the slots hold is unknown now."""
        for slot in self.slots:
            slot.clear()

    def has_cells(self, tokens: int, cells: int) -> bool:
        """Return whether a memory of so many cells, which the slots share, holds so many tokens more."""
        if sum(len(slot.cells) for slot in self.slots) + tokens <= cells:
            return True
        return len(set[int]().union(*(slot.cells for slot in self.slots))) + tokens <= cells

    def can_hold(self, sequence: Sequence, cells: int) -> bool:
        """Return whether it would, beside those who live in a slot, hold one more sequence and what it says next."""
        living = [slot for slot in self.slots if slot.sequence]
        used = len(set[int]().union(*(slot.cells for slot in living)))
        shared = max((common_prefix(slot.tokens, sequence.tokens) for slot in living), default=0)
        return used + sequence.length - shared + MIN_FREE_CELLS <= cells

    @property
    def eviction_candidate(self) -> Slot | None:
        """The slot that can best be cleared where memory is short: the highest free one that holds something."""
        return next((slot for slot in reversed(self._free_slots) if slot.tokens), None)

    @property
    def free_slot_count(self) -> int:
        """How many more sequences may run."""
        return min(self.limit, len(self.slots)) - len(self.running)

    @property
    def can_admit(self) -> bool:
        """Whether a sequence waits, there is room for it, and no prompt is still being read."""
        return (
            bool(self.waiting)
            and self.free_slot_count > 0
            and not any(sequence.is_prefilling for sequence in self.running)
        )

    @property
    def free_slot(self) -> Slot:
        """The free slot there is least to lose in: an empty one, the lowest."""
        return min(self._free_slots, key=lambda slot: (len(slot.tokens) > 0, slot.index))

    def next_admission(self) -> Admission:
        """Return where the next waiting sequence goes.

        The slot that shares the longest beginning gives it. The last token is always evaluated: its logits choose the
        next one.
        """
        sequence = self.waiting[0]
        beginning = sequence.tokens[:-1]
        shared = {slot.index: common_prefix(slot.tokens, beginning) for slot in self.slots}
        source = max(self.slots, key=lambda slot: (shared[slot.index], not slot.sequence, -slot.index))
        keep = shared[source.index]
        if keep and not source.sequence:
            return Admission(sequence, source, source, keep)
        return Admission(sequence, self.free_slot, source, keep)

    def sibling_samples(self, evaluated: Sequence) -> list[Admission]:
        """Return where samples of the prompt just read go, as far as there is room: they share all of it."""
        assert evaluated.slot is not None
        source = self.slots[evaluated.slot]
        siblings = takewhile(lambda one: one.request is evaluated.request and not one.generated, self.waiting)
        places = zip(range(self.free_slot_count), siblings, self._free_slots, strict=False)
        return [Admission(twin, slot, source, len(evaluated.prompt)) for _, twin, slot in places]

    def admit(self, admission: Admission, prefix_length: int) -> None:
        """Record an admission that has been carried out, with the tokens that could really be kept."""
        sequence, slot, source, _ = admission
        self.waiting.remove(sequence)
        slot.copy_prefix(source, prefix_length)
        slot.sequence = sequence
        sequence.slot = slot.index
        sequence.evaluated = prefix_length
        if not sequence.generated:
            sequence.cached_tokens = prefix_length

    def hole(self) -> tuple[Slot, Slot] | None:
        """Return the highest slot lived in and the lowest free one between such, if there is one.

        llama.cpp computes a step in one go only for slots that follow one another.
        """
        occupied = [slot.index for slot in self.slots if slot.sequence]
        if not occupied or occupied[-1] - occupied[0] == len(occupied) - 1:
            return None
        free = next(slot for slot in self._free_slots if slot.index > occupied[0])
        return self.slots[occupied[-1]], free

    def move(self, source: Slot, target: Slot) -> None:
        """Record that a sequence has moved, with what its slot held."""
        assert source.sequence is not None
        target.copy_prefix(source, len(source.tokens))
        source.clear()
        target.sequence, source.sequence = source.sequence, None
        target.sequence.slot = target.index

    def schedule(self, prefill_chunk: Callable[[int], int]) -> Step:
        """Return the next step: some tokens of what one sequence reads, or one token of each that talks.

        `stretch` tells how many tokens may be read at once from a position on.
        """
        running = self.running
        prefilling = next((sequence for sequence in running if sequence.is_prefilling), None)
        decoding = [(sequence, 1) for sequence in running if not sequence.is_prefilling]
        is_decode = prefilling is None or (bool(decoding) and self._prefilled >= MAX_PREFILL_BETWEEN_DECODES)
        if prefilling is None or is_decode:
            self._prefilled, scheduled = 0, decoding
        else:
            count = min(prefill_chunk(prefilling.evaluated), prefilling.length - prefilling.evaluated)
            self._prefilled, scheduled = self._prefilled + count, [(prefilling, count)]
        rows: list[Row] = []
        for sequence, count in scheduled:
            assert sequence.slot is not None
            last = sequence.length - 1
            for position in range(sequence.evaluated, sequence.evaluated + count):
                rows.append(Row(sequence.slot, position, sequence.token_at(position), position == last))
        return Step(rows, scheduled, is_decode)

    def record_evaluated(self, scheduled: Iterable[tuple[Sequence, int]]) -> None:
        """Record that so many further tokens of each sequence are in its slot's memory."""
        for sequence, count in scheduled:
            assert sequence.slot is not None
            begin = sequence.evaluated
            self.slots[sequence.slot].extend(map(sequence.token_at, range(begin, begin + count)))
            sequence.evaluated += count

    def resume(self, sequence: Sequence, length: int) -> None:
        """Record that after an interrupted step the sequence's slot holds just its first `length` tokens."""
        assert sequence.slot is not None
        slot = self.slots[sequence.slot]
        slot.copy_prefix(slot, min(length, len(slot.tokens)))
        slot.extend(map(sequence.token_at, range(len(slot.tokens), length)))
        sequence.evaluated = length

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; its slot is free and keeps what it holds."""
        if sequence.slot is not None:
            self.slots[sequence.slot].sequence = None
            sequence.slot = None
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Have a sequence wait behind the others, with all it has said, for a slot where there is more room."""
        self.remove(sequence)
        sequence.evaluated = 0
        self.waiting.append(sequence)

    @property
    def _free_slots(self) -> list[Slot]:
        return [slot for slot in self.slots if not slot.sequence]


def common_prefix(a: Many[int], b: Many[int]) -> int:
    """Return how many tokens two sequences have in common from their beginning."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))
