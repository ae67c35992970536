"""The score of finished rows: which samples are right, made from their texts whenever it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from cerebrum_cli.eval.questions import ScoredQuestion, ScoredSample
from cerebrum_cli.eval.run_rows import RunRow, Sample
from cerebrum_cli.eval.runs import Match
from cerebrum_cli.eval.scorers import ScoredAnswer, Written, opened_scorer
from cerebrum_cli.replies.tally import Program


def score(
    rows: Iterable[RunRow], match: Match, on_scored: Callable[[int, int], None] | None = None
) -> list[ScoredQuestion]:
    """Score the rows that were answered; call `on_scored` with the number of rows so far, and that of all.

    Raises UsageError if programs cannot run here.
    """
    answered = [row for row in rows if row.samples]
    scored = []
    with opened_scorer(match) as scorer:
        scores = scorer(written_of(row, sample) for row in answered for sample in row.samples)
        for row in answered:
            scored.append(scored_question(row, list(islice(scores, len(row.samples)))))
            if on_scored:
                on_scored(len(scored), len(answered))
    return scored


def written_of(row: RunRow, sample: Sample) -> Written:
    is_complete = sample.finish_reason == "stop"
    return Written(sample.text, is_complete, row.prompt, row.reference, row.choices, row.stub, row.entry_point)


def scored_question(row: RunRow, scores: Sequence[ScoredAnswer]) -> ScoredQuestion:
    scored = tuple(
        ScoredSample(*score, sample.finish_reason, program_of(sample))
        for sample, score in zip(row.samples, scores, strict=True)
    )
    of_programs = sum(sample.program_tokens for sample in row.samples)
    tokens = row.completion_tokens - of_programs
    return ScoredQuestion(row.id, row.digest, row.reference, scored, tokens, of_programs)


def program_of(sample: Sample) -> Program | None:
    """The program that was written after a sample."""
    if sample.program is None:
        return None
    return Program(sample.program, sample.program_output, sample.program_unsupported)
