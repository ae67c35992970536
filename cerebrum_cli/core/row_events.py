"""Progress of many rows, in a batch or an evaluation."""

from __future__ import annotations

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts

SHOWN_ERRORS = 3


@frozen
class RowCounts:
    """Finished rows of a batch: failed (with the first `errors`), truncated, and undecided by a vote."""

    failed: int = 0
    truncated: int = 0
    undecided: int = 0
    errors: Texts = ()


@frozen
class RowEvent:
    """Progress of a batch: `done` of `total` rows are finished; `counts` are the exceptions among these."""

    done: int
    total: int
    counts: RowCounts


@frozen
class EvalProgress:
    """Progress of an evaluation: `done` of `total` samples, `questions` of `all_questions`, and the score of these.

    `accuracy` and its 95% interval are None before the first question that counts. `no_answer` and `cut_off` are shares
    of the samples; `skipped` of them could not be generated.
    """

    done: int
    total: int
    questions: int
    all_questions: int
    accuracy: float | None
    interval: tuple[float, float] | None
    no_answer: float
    cut_off: float
    skipped: int
