"""Costs of decode steps relative to a step of one row, and the number of draft tokens that pays off."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

MEASURED_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MAX_DRAFT = 63  # tokens of a sequence, which with the last sampled one make 64 rows
MAX_ROLLBACK = 7  # tokens that can be removed from a recurrent state: each takes as much memory as the state itself
MAX_ROW_COST = 0.8  # of a step's rows, in steps of one row: more leaves nothing to gain


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Relative duration of a step by its number of rows: `costs[i]` for `rows[i]`, ascending from 1 row with cost 1.

    Tokens are drafted only up to these row counts: between them, kernels compute rows in vain.
    """

    rows: tuple[int, ...]
    costs: tuple[float, ...]

    def cost(self, rows: int) -> float:
        """Cost of a step by its rows: interpolated between measured row counts, extrapolated beyond the last."""
        above = bisect_left(self.rows, rows)
        if above == len(self.rows):
            return self.costs[-1] * rows / self.rows[-1]
        below = max(0, above - 1)
        share = (self.rows[above] - rows) / max(1, self.rows[above] - self.rows[below])
        return share * self.costs[below] + (1 - share) * self.costs[above]

    @property
    def best_draft(self) -> tuple[int, float] | None:
        """Number of rows with the lowest cost per row, and the cost of their step; None if drafting cannot pay."""
        rows, cost = min(zip(self.rows, self.costs, strict=True), key=lambda step: step[1] / step[0])
        return (rows, cost) if cost < MAX_ROW_COST * rows else None


# A model of 135M parameters in BF16 on two cores with AVX-512.
DEFAULT_COSTS = StepCosts(MEASURED_ROWS, (1.0, 1.55, 1.78, 1.98, 2.23, 2.51, 3.06, 3.58, 4.79, 5.92, 8.4, 9.85))


MIN_PROBABILITY = 0.75  # of a draft token to be worth a row; in prose, 2% of the tokens are then drafted in vain
MIN_GAIN = 1.1  # expected tokens per time, over a step without draft tokens
TILE_ROWS = 16  # from as many sequences on, a step fills the kernels' tiles: further rows are not free


def draft_lengths(
    probabilities: Sequence[Sequence[float]], costs: StepCosts, max_rows: int, is_equal: bool
) -> list[int]:
    """Number of tokens to draft for each sequence: those with the most expected tokens per time, or none.

    `probabilities` are, for each sequence, those of its draft tokens being accepted, descending. With `is_equal` all
    sequences get the same number: llama.cpp splits a step of separate KV caches, or with recurrent states, to the
    shortest of them. A step has at most `max_rows`.
    """
    count = len(probabilities)
    row_counts = [rows for rows in costs.rows if rows <= max_rows]
    likely = [[probability for probability in draft if probability >= MIN_PROBABILITY] for draft in probabilities]
    best, chosen = MIN_GAIN * count / costs.cost(count), [0] * count
    for rows in row_counts if count < TILE_ROWS and any(likely) else ():
        equal = max(0, min(rows // count - 1, *map(len, likely)))
        lengths = [equal] * count if is_equal else _likeliest(likely, rows)
        if sum(lengths):
            expected = sum(sum(draft[:length]) for draft, length in zip(likely, lengths, strict=True))
            value = (count + expected) / costs.cost(count + sum(lengths))
            if value > best:
                best, chosen = value, lengths
    return chosen


def _likeliest(probabilities: Sequence[Sequence[float]], rows: int) -> list[int]:
    """Lengths for a step of at most `rows` rows, made of the likeliest draft tokens."""
    extra = max(0, rows - len(probabilities))
    ranked = sorted((-probability, index) for index, draft in enumerate(probabilities) for probability in draft)
    lengths = [0] * len(probabilities)
    for _, index in ranked[:extra]:
        lengths[index] += 1
    return lengths
