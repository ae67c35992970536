"""Scores: whether the answers of finished rows are right, found from their texts whenever a run is shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from threading import Event
from typing import Literal, NamedTuple, TypeAlias, get_args

from cerebrum_cli.answers.final import compare_answer
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.engine.capacity import thread_count
from cerebrum_cli.eval.answered import Answered, Sample, Verdict
from cerebrum_cli.eval.bubblewrap import find_bubblewrap
from cerebrum_cli.eval.math_verify import MathVerify, math_verify_version

Match = Literal["answer", "exact", "math", "code", "choice"]
MATCHES: tuple[Match, ...] = get_args(Match)[:3]  # to choose from; "code" is for tasks, "choice" for decisions
FENCED = re.compile(r"(?ms)^[ \t]*```[^`\n]*\n(.*?)(?:^[ \t]*```|\Z)")

Reply: TypeAlias = tuple[Answered, Sample]
Scorer: TypeAlias = Callable[[Sequence[Answered]], Iterator[tuple[Verdict, ...]]]  # the verdicts on rows


class ScoreKind(NamedTuple):
    """How answers are scored: `open` gives a scorer, which may use processes until it is closed.

    Some answers are put to votes, so that maj@k is a metric; those of decisions are compared by their probabilities.
    """

    open: Callable[[], AbstractContextManager[Scorer]]
    has_votes: bool = False
    has_probabilities: bool = False


@contextmanager
def by_answer() -> Iterator[Scorer]:
    """The final answer of a reply equals a reference by its normal form, or names the right choice."""
    yield of_samples(map, score_answer)


@contextmanager
def by_text() -> Iterator[Scorer]:
    """A complete reply has exactly the text of a reference, but for white space around it."""
    yield of_samples(map, score_exact)


@contextmanager
def by_value() -> Iterator[Scorer]:
    """The final answer equals a reference by its normal form, or by Math-Verify if that is installed."""
    if not math_verify_version():
        yield of_samples(map, score_answer)
        return
    with closing(MathVerify()) as math_verify:
        yield of_samples(map, partial(score_math, math_verify))


@contextmanager
def by_test() -> Iterator[Scorer]:
    """The program of a reply passes its test in bubblewrap, as many programs at a time as there are cores.

    Raises UsageError if bubblewrap does not work here.
    """
    bubblewrap = find_bubblewrap()
    is_closed = Event()

    def run(reply: Reply) -> Verdict:
        row, sample = reply
        code = program_of(sample.text, row.stub, row.entry_point)
        result = bubblewrap.run(code, row.reference, is_closed=is_closed)
        return Verdict(code, result.reason == "passed", sample=sample)

    threads = ThreadPoolExecutor(thread_count())
    try:
        yield of_samples(threads.map, run)
    finally:
        is_closed.set()
        threads.shutdown(cancel_futures=True)


@contextmanager
def by_choice() -> Iterator[Scorer]:
    """The likeliest choice of a decision is the right one, also of a row that is left undecided."""
    yield lambda rows: ((Verdict(row.likeliest, row.likeliest in row.references, is_stated=True),) for row in rows)


SCORES: dict[Match, ScoreKind] = {
    "answer": ScoreKind(by_answer, has_votes=True),
    "exact": ScoreKind(by_text, has_votes=True),
    "math": ScoreKind(by_value, has_votes=True),
    "code": ScoreKind(by_test),
    "choice": ScoreKind(by_choice, has_votes=True, has_probabilities=True),
}


def score(
    rows: Iterable[Answered], match: Match, on_scored: Callable[[int, int], None] | None = None
) -> list[Answered]:
    """Score the rows that have a reply; call `on_scored` with the number of rows so far, and that of all.

    Raises UsageError if programs cannot run here.
    """
    answered = [row for row in rows if row.has_reply]
    scored = []
    with SCORES[match].open() as scorer:
        for row, verdicts in zip(answered, scorer(answered), strict=True):
            scored.append(replace(row, verdicts=verdicts))
            if on_scored:
                on_scored(len(scored), len(answered))
    return scored


def of_samples(
    mapped: Callable[[Callable[[Reply], Verdict], Iterable[Reply]], Iterator[Verdict]],
    score_reply: Callable[[Reply], Verdict],
) -> Scorer:
    """The scorer of rows by a function for each of their replies, which may be `mapped` concurrently."""

    def scorer(rows: Sequence[Answered]) -> Iterator[tuple[Verdict, ...]]:
        verdicts = mapped(score_reply, ((row, sample) for row in rows for sample in row.samples))
        for row in rows:
            yield tuple(islice(verdicts, len(row.samples)))

    return scorer


def require_run_code(match: Match, run_code: bool) -> None:
    """Raise UsageError if programs would run without consent, and for consent where none would."""
    if match == "code" and not run_code:
        raise UsageError("this task runs programs that the model writes", "add --run-code to run them in a sandbox")
    if run_code and match != "code":
        raise UsageError("--run-code applies only to humaneval", "omit --run-code")


def program_of(reply: str, stub: str, entry_point: str) -> str:
    """The program of a reply to a prompt that ends with the beginning of a function, its stub.

    It is the stub, and after it the last fenced block that defines the function, or the last one, which may continue
    it; without a block, the whole reply.
    """
    blocks = FENCED.findall(reply) or [reply]
    defining = [block for block in blocks if f"def {entry_point}(" in block]
    return f"{stub.rstrip()}\n{(defining or blocks)[-1]}\n"


def score_answer(reply: Reply) -> Verdict:
    row, sample = reply
    is_complete, found = sample.finish_reason == "stop", None
    for reference in row.references:
        found, is_correct = compare_answer(sample.text, is_complete, reference, row.choices, row.prompt)
        if found and is_correct:
            return Verdict(found.text, True, found.is_stated, sample)
    return Verdict(found.text, False, found.is_stated, sample) if found else Verdict(None, False, sample=sample)


def score_exact(reply: Reply) -> Verdict:
    row, sample = reply
    answer = sample.text.strip()
    is_correct = sample.finish_reason == "stop" and answer in map(str.strip, row.references)
    return Verdict(answer or None, is_correct, sample=sample)


def score_math(math_verify: MathVerify, reply: Reply) -> Verdict:
    scored, (row, _) = score_answer(reply), reply
    if scored.answer is None or scored.is_correct:
        return scored
    is_equal = partial(math_verify.is_equal, scored.answer)
    return replace(scored, is_correct=any(map(is_equal, row.references)))
