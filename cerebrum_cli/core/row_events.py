"""Progress of many rows."""

from __future__ import annotations

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts

SHOWN_ERRORS = 3


@frozen
class RowCounts:
    """Finished rows: failed (with the first `errors`), truncated, undecided by a vote, and without text."""

    failed: int = 0
    truncated: int = 0
    undecided: int = 0
    empty: int = 0
    errors: Texts = ()

    @property
    def clauses(self) -> list[str]:
        names = ("failed", "truncated", "undecided", "empty")
        return [f"{count} {name}" for name in names if (count := getattr(self, name))]


@frozen
class RowEvent:
    """Progress of many rows: `done` of `total` are finished, some by `earlier` runs; `counts` are the exceptions."""

    done: int
    total: int
    counts: RowCounts
    earlier: int = 0

    @property
    def answered(self) -> int:
        """The rows that took time: errors are mostly found before anything is generated."""
        return self.done - self.counts.failed
