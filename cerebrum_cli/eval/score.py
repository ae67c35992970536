"""The score of finished rows: which samples are right, made from their objects whenever it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.eval.questions import CHOICES, ENTRY_POINT, STUB, ScoredQuestion, ScoredSample
from cerebrum_cli.eval.runs import REFERENCE, Match
from cerebrum_cli.eval.scorers import ScoredAnswer, Written, opened_scorer
from cerebrum_cli.replies.tally import Program
from cerebrum_cli.results.rows import Key

DECIDED = "answer"  # a key of the objects of decisions


def score(
    objects: Iterable[JsonObject], match: Match, on_scored: Callable[[int, int], None] | None = None
) -> list[ScoredQuestion]:
    """Score the rows that were answered; call `on_scored` with the number of rows so far, and that of all.

    Raises UsageError if programs cannot run here.
    """
    answered = [(object, samples) for object in objects if (samples := samples_of(object))]
    rows = []
    with opened_scorer(match) as scorer:
        scores = scorer(written_of(object, sample) for object, samples in answered for sample in samples)
        for object, samples in answered:
            rows.append(scored_question(object, samples, list(islice(scores, len(samples)))))
            if on_scored:
                on_scored(len(rows), len(answered))
    return rows


def samples_of(object: JsonObject) -> Sequence[JsonObject]:
    """The samples of a row; none if it could not be asked."""
    if DECIDED in object:
        return [] if object["error"] else [{"text": object[DECIDED] or "", "finish_reason": "stop"}]
    if object["finish_reason"] is None:
        return []
    votes = object["votes"]
    samples: Sequence[JsonObject] = votes["samples"] if votes else [object]
    return samples


def written_of(object: JsonObject, sample: JsonObject) -> Written:
    return Written(
        sample["text"],
        sample["finish_reason"] == "stop",
        object["prompt"],
        object[REFERENCE],
        tuple(object.get(CHOICES, ())),
        object.get(STUB, ""),
        object.get(ENTRY_POINT, ""),
    )


def scored_question(
    object: JsonObject, samples: Sequence[JsonObject], scores: Sequence[ScoredAnswer]
) -> ScoredQuestion:
    scored = tuple(
        ScoredSample(*score, sample["finish_reason"], program_of(sample))
        for sample, score in zip(samples, scores, strict=True)
    )
    of_programs = sum(sample.get("program_tokens", 0) for sample in samples)
    tokens = object.get("completion_tokens", 0) - of_programs
    digest = Key.parse(object["key"]).digest.decode()
    return ScoredQuestion(object["id"], digest, object[REFERENCE], scored, tokens, of_programs)


def program_of(sample: JsonObject) -> Program | None:
    """The program that was written after a sample."""
    code = sample.get("program")
    if code is None:
        return None
    return Program(code, sample["program_output"], sample.get("program_unsupported", False))
