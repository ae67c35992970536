"""Choose how many draft tokens a step verifies."""

from __future__ import annotations

from collections.abc import Sequence

from cerebrum_cli.engine.drafts.costs import StepCosts

MIN_PROBABILITY = 0.75  # of a draft token to be worth a row; in prose, 2% of the tokens are then drafted in vain
MIN_GAIN = 1.1  # expected tokens per time, over a step without drafts
TILE_ROWS = 16  # from as many sequences on, a step fills the kernels' tiles: further rows are not free


def draft_lengths(
    probabilities: Sequence[Sequence[float]], costs: StepCosts, max_rows: int, is_equal: bool
) -> list[int]:
    """Number of draft tokens for each sequence: those with the most expected tokens per time, or none.

    `probabilities` are, for each sequence, those of its draft tokens being accepted, descending. With `is_equal` all
    sequences get the same number: llama.cpp splits a step of separate KV caches to the shortest of them. A step has at
    most `max_rows`.
    """
    count = len(probabilities)
    row_counts = [rows for rows in costs.rows if rows <= max_rows]
    likely = [[each for each in draft if each >= MIN_PROBABILITY] for draft in probabilities]
    best, chosen = MIN_GAIN * count / costs.cost(count), [0] * count
    for rows in row_counts if count < TILE_ROWS and any(likely) else ():
        lengths = _equal(likely, rows) if is_equal else _likeliest(likely, rows)
        if sum(lengths):
            expected = sum(sum(draft[:length]) for draft, length in zip(likely, lengths, strict=True))
            value = (count + expected) / costs.cost(count + sum(lengths))
            if value > best:
                best, chosen = value, lengths
    return chosen


def _likeliest(probabilities: Sequence[Sequence[float]], rows: int) -> list[int]:
    """Lengths for a step of at most so many rows, made of the likeliest draft tokens."""
    extra = max(0, rows - len(probabilities))
    ranked = sorted((-probability, index) for index, each in enumerate(probabilities) for probability in each)
    lengths = [0] * len(probabilities)
    for _, index in ranked[:extra]:
        lengths[index] += 1
    return lengths


def _equal(probabilities: Sequence[Sequence[float]], rows: int) -> list[int]:
    """Equal lengths for a step of at most so many rows."""
    length = min(rows // len(probabilities) - 1, *map(len, probabilities))
    return [max(0, length)] * len(probabilities)
