"""Progress of many rows, in a batch or an evaluation."""

from __future__ import annotations

from typing import ClassVar

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts

SHOWN_ERRORS = 3


@frozen
class RowCounts:
    """Finished rows of a batch: failed (with the first `errors`), truncated, undecided by a vote, and without text."""

    failed: int = 0
    truncated: int = 0
    undecided: int = 0
    empty: int = 0
    errors: Texts = ()


@frozen
class RowProgress:
    """Progress of many rows: `done` of `total` are finished."""

    unit: ClassVar[str] = ""  # of what is counted, if it is not rows
    done: int
    total: int

    @property
    def answered(self) -> int:
        """The number of rows that took time."""
        return self.done

    @property
    def counter(self) -> tuple[int, int]:
        """What is shown as done, and of how many."""
        return self.done, self.total

    @property
    def clauses(self) -> list[str]:
        """What is noteworthy about them, the most important first."""
        return []


@frozen
class RowEvent(RowProgress):
    """Progress of a batch; `counts` are the exceptions among the finished rows."""

    counts: RowCounts

    @property
    def answered(self) -> int:
        """Errors are mostly found before anything is generated."""
        return self.done - self.counts.failed

    @property
    def clauses(self) -> list[str]:
        counts = self.counts
        names = ("failed", "truncated", "undecided", "empty")
        return [f"{count} {name}" for name in names if (count := getattr(counts, name))]
