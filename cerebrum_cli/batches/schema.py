"""The rows of a result, and what a line of each holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.events import RowCounts


@dataclass(frozen=True, slots=True)
class Schema:
    """The lists of keys a line may have, those whose values identify its row, and how it counts in the totals."""

    keys: Collection[tuple[str, ...]]
    identity: tuple[str, ...]
    count: Callable[[Mapping[str, Any]], RowCounts]

    def identify(self, object: Mapping[str, Any]) -> tuple[Any, ...]:
        """What identifies the row of a line, as JSON values."""
        return tuple(object[key] for key in self.identity)


@dataclass(frozen=True, slots=True)
class ResultRows:
    """The rows of a result by position, each as what identifies it; rows of a batch may be equal."""

    schema: Schema
    identities: Sequence[tuple[Any, ...]]

    def __len__(self) -> int:
        return len(self.identities)

    def validate(self, finished: Collection[int], position: int, object: Mapping[str, Any]) -> None:
        """Raise ValueError unless the row at a position is unfinished and the object belongs to it."""
        if position in finished or not 0 <= position < len(self):
            raise ValueError(f"no unfinished row at position {position}")
        if tuple(object) not in self.schema.keys or self.schema.identify(object) != self.identities[position]:
            raise ValueError(f"not an object of row {self.identities[position]}: {list(object)}")

    def require_finished(self, finished: Collection[int]) -> None:
        """Raise ValueError while rows are missing."""
        if len(finished) != len(self):
            raise ValueError(f"{len(self) - len(finished)} rows are not finished")
