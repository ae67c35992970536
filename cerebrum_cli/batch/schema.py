"""The rows of a result, what a line of each holds, and which of them are finished."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cerebrum_cli.core.events import RowCounts

_FINISHED, _FAILED, _TRUNCATED, _UNDECIDED = 1, 2, 4, 8
_NO_ANSWER = _FAILED | _UNDECIDED
_FORGOTTEN = bytes(0 if flags & _NO_ANSWER else flags for flags in range(256))  # a table for `translate`


@dataclass(frozen=True, slots=True)
class Schema:
    """The lists of keys a line may have, those whose values identify its row, and how it counts in the totals."""

    keys: Collection[tuple[str, ...]]
    identity: tuple[str, ...]
    count: Callable[[Mapping[str, Any]], RowCounts]

    def identify(self, object: Mapping[str, Any]) -> tuple[Any, ...]:
        """What identifies the row of a line, as JSON values."""
        return tuple(object[key] for key in self.identity)


def with_optional(keys: tuple[str, ...], optional: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The lists of keys with any of the optional ones behind them, in order."""
    counts = range(len(optional) + 1)
    return tuple((*keys, *more) for count in counts for more in combinations(optional, count))


@dataclass(frozen=True, slots=True)
class ResultRows:
    """The rows of a result: how many, and what identifies the row at a position; rows of a batch may be equal."""

    schema: Schema
    size: int
    identity: Callable[[int], tuple[Any, ...]]

    def __len__(self) -> int:
        return self.size

    def validate(self, finished: Collection[int], position: int, object: Mapping[str, Any]) -> None:
        """Raise ValueError unless the row at a position is unfinished and the object belongs to it."""
        if position in finished or not 0 <= position < len(self):
            raise ValueError(f"no unfinished row at position {position}")
        identity = self.identity(position)
        if tuple(object) not in self.schema.keys or self.schema.identify(object) != identity:
            raise ValueError(f"not an object of row {identity}: {list(object)}")

    def require_finished(self, finished: Collection[int]) -> None:
        """Raise ValueError while rows are missing."""
        if len(finished) != len(self):
            raise ValueError(f"{len(self) - len(finished)} rows are not finished")


class FinishedRows(Collection[int]):
    """The positions of finished rows, with their `counts`: a byte for each row of the result."""

    def __init__(self, rows: int) -> None:
        self._flags = bytearray(rows)
        self._size = 0
        self.counts = RowCounts()

    def __contains__(self, position: object) -> bool:
        return isinstance(position, int) and 0 <= position < len(self._flags) and self._flags[position] > 0

    def __iter__(self) -> Iterator[int]:
        return (position for position, flags in enumerate(self._flags) if flags)

    def __len__(self) -> int:
        return self._size

    def add(self, position: int, counts: RowCounts) -> None:
        """Add a row, which counts as one of these at most once."""
        self.mark(position, counts)
        self._size += 1
        self.counts += counts

    def mark(self, position: int, counts: RowCounts) -> None:
        """Add or replace a row; the totals are those of the next `recount`."""
        failed, truncated, undecided = counts.failed > 0, counts.truncated > 0, counts.undecided > 0
        self._flags[position] = _FINISHED | failed * _FAILED | truncated * _TRUNCATED | undecided * _UNDECIDED

    def recount(self) -> None:
        """Count all rows; the counts have no messages."""
        self._size = len(self._flags) - self._flags.count(0)
        self.counts = RowCounts(self._count(_FAILED), self._count(_TRUNCATED), self._count(_UNDECIDED))

    def has_answer(self, position: int) -> bool:
        """Whether a finished row has neither an error nor a vote without a winner."""
        return not self._flags[position] & _NO_ANSWER

    @property
    def failed(self) -> Iterator[int]:
        """The positions of the rows with an error."""
        return (position for position, flags in enumerate(self._flags) if flags & _FAILED)

    def forget_failed(self) -> None:
        """Remove the rows without an answer."""
        self._flags = self._flags.translate(_FORGOTTEN)
        self.recount()

    def _count(self, flag: int) -> int:
        return sum(self._flags.count(flags) for flags in range(2 * _UNDECIDED) if flags & flag)
