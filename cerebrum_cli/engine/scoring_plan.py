"""Plan the steps that evaluate each node of a token trie once, with rows of many texts in one step. Pure.

The trie of all texts is given as its paths from the root to a leaf, in lexicographic order. A path starts in a slot
with a copy of what it has in common with the path before it, as soon as that is evaluated, or in the place of that path
when it is finished; so a path keeps its slot until the next one has started. A step takes rows of the running paths,
oldest first, and starts only as many paths as fill it: attention over a shared cache costs time for every token in it.
Paths that wait for their prefix are overtaken by later ones, if these leave enough memory for any path: the first
waiting one can then always continue in the place of the one before it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from typing import NamedTuple

from cerebrum_cli.engine.backend import TokenRow
from cerebrum_cli.engine.scheduler import common_prefix
from cerebrum_cli.engine.sequence import Tokens

Lookups = dict[int, dict[int, list[int]]]
"""Readers of probabilities: by number of evaluated tokens, and by the token after these."""


class Path(NamedTuple):
    """A leaf of the trie: the tokens from the root to it; it shares the first `shared` with the path before.

    `lookups` are the probabilities read at the nodes that are not shared, as flat triples of integers: number of tokens
    evaluated, next token, reader. An array takes a tenth of the memory of objects.
    """

    tokens: array[int]
    shared: int
    lookups: array[int]

    def lookups_by_node(self) -> Lookups:
        found: Lookups = defaultdict(lambda: defaultdict(list))
        for at in range(0, len(self.lookups), 3):
            evaluated, token, reader = self.lookups[at : at + 3]
            found[evaluated][token].append(reader)
        return dict(found)


def build_paths(terms: Sequence[tuple[Tokens, Tokens]]) -> tuple[Path, ...]:
    """Build the trie of contexts and continuations, given in pairs, without the last token of each.

    A reader is the index of a pair. The paths depend on the set of pairs alone, not on their order. Contexts may not be
    empty; nothing is evaluated for an empty continuation.
    """
    texts = sorted(
        (array("i", [*context, *continuation[:-1]]), reader)
        for reader, (context, continuation) in enumerate(terms)
        if continuation
    )
    paths: list[Path] = []
    starts: list[int] = []  # a node of the current path belongs to the first path that has it: the last of `owners`
    owners: list[int] = []  # whose start is less than the node's depth
    for leaf, shared, readers in _leaves(texts):
        while starts and starts[-1] >= shared:
            del starts[-1], owners[-1]
        starts.append(shared)
        owners.append(len(paths))
        paths.append(Path(leaf, shared, array("i")))
        for reader in readers:
            context, continuation = terms[reader]
            for evaluated, token in enumerate(continuation, len(context)):
                paths[owners[bisect_left(starts, evaluated) - 1]].lookups.extend((evaluated, token, reader))
    return tuple(paths)


def _leaves(texts: Sequence[tuple[array[int], int]]) -> Iterator[tuple[array[int], int, list[int]]]:
    """Yield each text that no other extends, its common prefix with the one before, and the readers along it."""
    readers: list[int] = []
    shared = 0
    for index, (text, reader) in enumerate(texts):
        readers.append(reader)
        following = texts[index + 1][0] if index + 1 < len(texts) else array("i")
        common = common_prefix(text, following)
        if common < len(text):
            yield text, shared, readers
            readers, shared = [], common


LOOKAHEAD = 64  # paths that are considered for a step, after the first that has not started


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a step: rows, and rows with logits; of memory: slots, and cells in all of them together.

    A slot with up to `trimmable_length` tokens can be trimmed to any length.
    """

    batch_size: int
    max_outputs: int
    slots: int
    cells: int
    trimmable_length: float

    def can_trim(self, held: int, length: int) -> bool:
        return held == length or held <= self.trimmable_length


class SlotChange(NamedTuple):
    """Change of a slot before a step: it then holds the first `length` tokens of `source`, which may be itself."""

    slot: int
    source: int
    length: int


class RowRange(NamedTuple):
    """Consecutive rows of a step: tokens `start` to `stop` of a text, evaluated in a slot that holds those before."""

    slot: int
    text: array[int]
    start: int
    stop: int


class TokenLookup(NamedTuple):
    """The probability of a token after a row of a step, and the continuations that it is a factor of."""

    row: int
    token: int
    readers: tuple[int, ...]


class ScoreStep(NamedTuple):
    """Changes of slots, then one decode of `rows`, then lookups in its logits, ascending by row.

    `nodes` is the number of rows evaluated for the first time: all, unless slots could not be trimmed.
    """

    slot_changes: tuple[SlotChange, ...]
    runs: tuple[RowRange, ...]
    rows: tuple[TokenRow, ...]
    lookups: tuple[TokenLookup, ...]
    nodes: int


class Piece(NamedTuple):
    """Cells of a slot that were filled by the path `owner`, from the start of its own cells up to a length."""

    owner: int
    start: int
    stop: int


@dataclass(slots=True)
class Running:
    """A path in a slot; `evaluated` of its tokens are there before the step that is planned."""

    index: int
    path: Path
    slot: int
    evaluated: int
    pieces: tuple[Piece, ...]
    lookups: Lookups

    @property
    def length(self) -> int:
        return len(self.path.tokens)

    @property
    def is_finished(self) -> bool:
        return self.evaluated == self.length


class ScorePlanner:
    """The state of memory after the steps planned so far; no path may be longer than the memory."""

    def __init__(self, paths: Sequence[Path], limits: Limits) -> None:
        self._paths = paths
        self._limits = limits
        self._longest = max((len(path.tokens) for path in paths), default=0)
        self._first = 0  # path that has not started
        self._overtaking: set[int] = set()  # paths after the first that have started
        self._running: dict[int, Running] = {}
        self._free_slots = list(range(limits.slots))
        self._slot_changes: list[SlotChange] = []

    def next_step(self) -> ScoreStep | None:
        """Plan the next step; None if all is evaluated."""
        self._start_paths()
        if not (runs := self._choose_runs()):
            assert self._first == len(self._paths), "no path can continue"
            return None
        rows: list[TokenRow] = []
        lookups: list[TokenLookup] = []
        nodes = 0
        for running, run in sorted(runs, key=lambda pair: pair[1].slot):
            for position in range(run.start, run.stop):
                readers = running.lookups.get(position + 1, {})
                lookups += [TokenLookup(len(rows), token, tuple(readers[token])) for token in sorted(readers)]
                rows.append(TokenRow(run.slot, position, run.text[position], bool(readers)))
            nodes += max(0, run.stop - max(run.start, running.path.shared))
            running.evaluated = run.stop
        step = ScoreStep(tuple(self._slot_changes), tuple(run for _, run in runs), tuple(rows), tuple(lookups), nodes)
        self._slot_changes = self._release_slots()
        return step

    def _start_paths(self) -> None:
        """Start paths whose prefix is evaluated, in order, until the step is full."""
        rows = sum(running.length - running.evaluated for running in self._running.values())
        source, shared = self._running.get(self._first - 1), self._longest
        for index in range(self._first, min(self._first + LOOKAHEAD, len(self._paths))):
            if self._has_started(index):
                source, shared = self._running.get(index), self._longest
                continue
            shared = min(shared, self._paths[index].shared) if source else 0
            if source and source.evaluated < shared:
                continue
            if rows >= self._limits.batch_size and not self._is_last_chance(source, shared):
                break
            started = self._start(index, source, shared)
            if started is None:
                break
            rows += started.length - started.evaluated
            source, shared = started, self._longest

    def _is_last_chance(self, source: Running | None, shared: int) -> bool:
        """Whether the source will not be trimmable any more to what it holds now."""
        return source is not None and 0 < shared == source.evaluated and not self._limits.can_trim(shared + 1, shared)

    def _start(self, index: int, source: Running | None, shared: int) -> Running | None:
        """Start a path with the first `shared` tokens of another; None if slots or memory are short."""
        path = self._paths[index]
        reused = shared if source and self._limits.can_trim(source.evaluated, shared) else 0
        inherited = [Piece(*piece[:2], min(piece.stop, reused)) for piece in source.pieces] if source else []
        pieces = (*(piece for piece in inherited if piece.start < piece.stop), Piece(index, reused, len(path.tokens)))
        replaced = source if source and source.is_finished and source.index == index - 1 else None
        others = [running.pieces for running in self._running.values() if running is not replaced]
        reserve = self._longest if index > self._first else 0
        if used_cells([*others, pieces]) + reserve > self._limits.cells or not (replaced or self._free_slots):
            return None
        if replaced:
            slot = replaced.slot
            del self._running[replaced.index]
        else:
            slot = heappop(self._free_slots)
        if replaced or (source and reused):
            self._slot_changes.append(SlotChange(slot, source.slot if source else slot, reused))
        self._running[index] = started = Running(index, path, slot, reused, pieces, path.lookups_by_node())
        self._overtaking.add(index)
        while self._first in self._overtaking:
            self._overtaking.remove(self._first)
            self._first += 1
        return started

    def _choose_runs(self) -> list[tuple[Running, RowRange]]:
        runs = []
        rows, outputs = self._limits.batch_size, self._limits.max_outputs
        for running in sorted(self._running.values(), key=lambda running: running.index):
            stop = min(running.length, running.evaluated + rows, self._branch(running))
            with_logits = [end for end in range(running.evaluated + 1, stop + 1) if end in running.lookups]
            if len(with_logits) > outputs:
                stop = with_logits[outputs] - 1
            if stop > running.evaluated:
                runs.append((running, RowRange(running.slot, running.path.tokens, running.evaluated, stop)))
                rows -= stop - running.evaluated
                outputs -= min(outputs, len(with_logits))
        return runs

    def _branch(self, running: Running) -> int:
        """Length at which the next path needs a copy, if the slot could not be trimmed to it later; or the length."""
        if not self._free_slots or running.index + 1 == len(self._paths) or self._has_started(running.index + 1):
            return running.length
        branch = self._paths[running.index + 1].shared
        needs_copy = running.evaluated < branch and not self._limits.can_trim(running.length, branch)
        return branch if needs_copy else running.length

    def _release_slots(self) -> list[SlotChange]:
        """Empty the slots of finished paths that no later path starts from."""
        released = [
            running
            for running in self._running.values()
            if running.is_finished and (running.index + 1 == len(self._paths) or self._has_started(running.index + 1))
        ]
        for running in released:
            del self._running[running.index]
            heappush(self._free_slots, running.slot)
        return [SlotChange(running.slot, running.slot, 0) for running in released]

    def _has_started(self, index: int) -> bool:
        return index < self._first or index in self._overtaking


def used_cells(slots: Iterable[Iterable[Piece]]) -> int:
    """Number of cells of a shared cache that the pieces in the slots fill; copies take none."""
    sizes: dict[int, int] = {}
    for owner, start, stop in chain.from_iterable(slots):
        sizes[owner] = max(sizes.get(owner, 0), stop - start)
    return sum(sizes.values())
