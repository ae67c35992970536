"""Schedule sequences: assign slots, and decide which tokens each step evaluates. Pure: nothing is computed here.

A slot records the tokens it holds after its sequence has ended, so that the next prompt reuses the longest common
prefix instead of evaluating it again. Prompts are evaluated one at a time, in steps of their own: batched with others,
the last bits of a reply would depend on the number of slots. Decoding waits for a bounded number of prompt tokens.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence as Many
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice, takewhile
from typing import NamedTuple

from cerebrum_cli.core.token_ids import TokenIds, Tokens, common_tokens, pack_tokens
from cerebrum_cli.engine.sequence import Sequence
from cerebrum_cli.engine.step import Checkpoint, TokenRow

MIN_FREE_CELLS = 256  # tokens of room for a reply that admission to a unified KV cache requires
MAX_PREFILL_BETWEEN_DECODES = 1024  # tokens of prompts
CELLS_PER_TOKEN = 512  # copied in the time of evaluating one token: 400 to 1,500 on CPUs, from 135M to 7B parameters

CELL_IDS = count()  # unique across all KV caches of the process
CLOCK = count(1)


@dataclass(slots=True)
class Slot:
    """Place for one sequence: the tokens in its KV cache, the cells that hold them, and the sequence running in it.

    In a unified KV cache, copies of a token share its cell; `uses` counts the slots that use each cell, and is None for
    separate caches. `checkpoints` are earlier states of this slot, and `last_used` is larger the later a sequence was
    in it.
    """

    index: int
    uses: Counter[int] | None
    tokens: array[int] = field(default_factory=partial(array, "i"))
    cells: list[int] = field(default_factory=list)
    sequence: Sequence | None = None
    checkpoints: list[Checkpoint] = field(default_factory=list)
    last_used: int = 0

    def extend(self, tokens: Iterable[int]) -> None:
        self.tokens.extend(tokens)
        if self.uses is not None:
            cells = list(islice(CELL_IDS, len(self.tokens) - len(self.cells)))
            self.cells += cells
            self.uses.update(cells)

    def truncate(self, length: int) -> None:
        """Record that this slot holds its first `length` tokens only."""
        if self.uses is not None:
            for cell in self.cells[length:]:
                self.uses[cell] -= 1
                if not self.uses[cell]:
                    del self.uses[cell]
        del self.tokens[length:], self.cells[length:]
        self.checkpoints = [checkpoint for checkpoint in self.checkpoints if checkpoint.length <= length]

    def copy_prefix(self, source: Slot, length: int) -> None:
        """Record that this slot now holds the first `length` tokens of another, or of itself."""
        if source is self:
            self.truncate(length)
            return
        self.truncate(0)
        self.tokens = source.tokens[:length]
        self.cells = source.cells[:length]
        if self.uses is not None:
            self.uses.update(self.cells)
        self.checkpoints = [checkpoint for checkpoint in source.checkpoints if checkpoint.length <= length]


class Admission(NamedTuple):
    """Where a waiting sequence goes: to `slot`, with the first `prefix_length` tokens of `source` reused."""

    sequence: Sequence
    slot: Slot
    source: Slot
    prefix_length: int


class Share(NamedTuple):
    """A sequence's part of a step: tokens after those evaluated, and whether the last of them gives logits.

    With a `draft`, these tokens follow, each with logits.
    """

    sequence: Sequence
    tokens: Tokens
    has_output: bool
    draft: TokenIds = ()


def rows_of(step: Iterable[Share]) -> list[TokenRow]:
    rows = []
    for sequence, tokens, has_output, draft in step:
        assert sequence.slot is not None
        for index, token in enumerate((*tokens, *draft)):
            is_output = has_output and index >= len(tokens) - 1
            rows.append(TokenRow(sequence.slot, sequence.evaluated + index, token, is_output))
    return rows


class Scheduler:
    """Waiting and running sequences, and the slots of the running ones.

    A `snapshot` is the whole state of a slot that held these tokens; any slot can load it.
    """

    def __init__(self, slots: int, kv_unified: bool) -> None:
        self.waiting: deque[Sequence] = deque()
        self._kv_unified = kv_unified
        self.reset_slots(slots)

    def reset_slots(self, slots: int) -> None:
        """Replace the slots by this number of empty ones, after memory was allocated."""
        self._uses: Counter[int] | None = Counter() if self._kv_unified else None
        self.slots = [Slot(index, self._uses) for index in range(slots)]
        self._prefilled = 0
        self.snapshot: tuple[array[int], Checkpoint] | None = None

    @property
    def running(self) -> list[Sequence]:
        """Sequences that have a slot, ascending by slot."""
        return [slot.sequence for slot in self.slots if slot.sequence]

    def slot_of(self, sequence: Sequence) -> Slot:
        assert sequence.slot is not None
        return self.slots[sequence.slot]

    def submit(self, sequences: Many[Sequence], first: bool) -> None:
        """Queue sequences behind all others, or before them."""
        if first:
            self.waiting.extendleft(reversed(sequences))
        else:
            self.waiting.extend(sequences)

    @property
    def prefilling(self) -> Sequence | None:
        for sequence in self.running:
            if sequence.is_prefilling:
                return sequence
        return None

    def has_cells(self, tokens: int, cells: int) -> bool:
        """Whether memory holds this many additional tokens without evicting any."""
        return self._uses is None or len(self._uses) + tokens <= cells

    def can_hold(self, sequence: Sequence, cells: int) -> bool:
        """Whether memory, without idle slots, has room for one more sequence and part of its reply."""
        if not self._kv_unified:
            return True
        running = [slot for slot in self.slots if slot.sequence]
        used = len(set[int]().union(*(slot.cells for slot in running)))
        shared = max(common_prefixes(running, sequence.tokens[: sequence.last_position]), default=0)
        return used + sequence.length - shared + MIN_FREE_CELLS <= cells

    @property
    def free_slots(self) -> list[Slot]:
        return [slot for slot in self.slots if not slot.sequence]

    @property
    def slots_to_overwrite(self) -> list[Slot]:
        """Free slots, those whose contents are the smallest loss first: empty ones, then the least recently used.

        In separate KV caches the lowest of those come first, since llama.cpp computes consecutive slots together.
        """
        return sorted(
            self.free_slots,
            key=lambda slot: (len(slot.tokens) > 0, slot.last_used if self._kv_unified else slot.index),
        )

    def next_admission(self, copied_cells: int, reusable: Callable[[Slot, int], int]) -> Admission:
        """Choose a slot for the next waiting sequence, and the slot whose common prefix saves the most as its source.

        `reusable` is how much of a slot's first tokens can be reused. A prefix in a running slot has to be copied,
        which moves `copied_cells` however short it is. In a unified KV cache a copy costs nothing, and if most of
        the source differs it replaces the least recently used slot instead. The last token is never reused, since its
        logits choose the next.
        """
        sequence = self.waiting[0]
        reused = common_prefixes(self.slots, sequence.tokens[: sequence.last_position], reusable)

        def tokens_saved(slot: Slot) -> int:
            if slot.sequence and not self._kv_unified:  # its cells must be copied
                return reused[slot.index] - copied_cells // CELLS_PER_TOKEN
            return reused[slot.index]

        source = max(self.slots, key=lambda slot: (tokens_saved(slot), slot.sequence is None, -slot.index))
        if tokens_saved(source) <= 0:
            return Admission(sequence, self.slots_to_overwrite[0], source, 0)
        length = reused[source.index]
        is_other_conversation = self._kv_unified and length < len(source.tokens) // 2
        slot = self.slots_to_overwrite[0] if source.sequence or is_other_conversation else source
        return Admission(sequence, slot, source, length)

    def sibling_samples(self, evaluated: Sequence) -> list[Admission]:
        """Choose slots, as far as they are free, for samples of the prompt just evaluated: they reuse all of it."""
        source = self.slot_of(evaluated)
        request = evaluated.request
        siblings = takewhile(lambda waiting: waiting.request is request and not waiting.generated, self.waiting)
        pairs = zip(siblings, self.free_slots, strict=False)
        return [Admission(sibling, slot, source, len(evaluated.prompt)) for sibling, slot in pairs]

    def admit(self, admission: Admission, prefix_length: int) -> None:
        sequence, slot, source, _ = admission
        self.waiting.remove(sequence)
        slot.copy_prefix(source, prefix_length)
        slot.sequence, slot.last_used = sequence, next(CLOCK)
        sequence.slot = slot.index
        sequence.evaluated = prefix_length
        if not sequence.generated:
            sequence.cached_tokens = prefix_length

    def hole(self) -> tuple[Slot, Slot] | None:
        """Find the highest running slot and the lowest free one below it, if any.

        llama.cpp computes a step in one pass only for consecutive slots.
        """
        running = self.running
        if not running:
            return None
        lowest, highest = self.slot_of(running[0]), self.slot_of(running[-1])
        if highest.index - lowest.index == len(running) - 1:
            return None
        free = next(slot for slot in self.free_slots if slot.index > lowest.index)
        return highest, free

    def move(self, source: Slot, target: Slot) -> None:
        assert source.sequence is not None
        target.copy_prefix(source, len(source.tokens))
        source.truncate(0)
        target.sequence = source.sequence
        source.sequence = None
        target.sequence.slot = target.index
        target.last_used = source.last_used

    def schedule(self, prefill_chunk: Callable[[int], int]) -> list[Share]:
        """Schedule a step: part of the one prompt being evaluated, or one token of each decoding sequence.

        `prefill_chunk` gives the maximum number of prompt tokens from a position.
        """
        prefilling = None
        decoding = []
        for sequence in self.running:
            if not sequence.is_prefilling:
                decoding.append(Share(sequence, sequence.tokens_from(sequence.evaluated, 1), True))
            elif prefilling is None:
                prefilling = sequence
        if prefilling is None or (decoding and self._prefilled >= MAX_PREFILL_BETWEEN_DECODES):
            self._prefilled = 0
            return decoding
        evaluated = prefilling.evaluated
        size = prefill_chunk(evaluated)
        if evaluated < prefilling.checkpoint_at:
            size = min(size, prefilling.checkpoint_at - evaluated)
        tokens = prefilling.tokens_from(evaluated, size)
        self._prefilled += len(tokens)
        return [Share(prefilling, tokens, evaluated + len(tokens) == prefilling.length)]

    def record_evaluated(self, sequence: Sequence, tokens: Iterable[int]) -> None:
        slot = self.slot_of(sequence)
        slot.extend(tokens)
        sequence.evaluated = len(slot.tokens)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence; the contents of its slot can be reused."""
        if sequence.slot is not None:
            slot = self.slot_of(sequence)
            slot.sequence, slot.last_used = None, next(CLOCK)
            sequence.slot = None
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Return a sequence, with its reply so far, to the end of the queue."""
        self.remove(sequence)
        sequence.evaluated = 0
        self.waiting.append(sequence)


def common_prefixes(
    slots: Many[Slot], tokens: Many[int], reusable: Callable[[Slot, int], int] = lambda _, length: length
) -> list[int]:
    """How many of the tokens each slot begins with, as far as these are `reusable`."""
    packed = pack_tokens(tokens)
    lengths = []
    for slot in slots:
        length = common_tokens(pack_tokens(slot.tokens), packed)
        lengths.append(reusable(slot, length) if length else 0)
    return lengths
