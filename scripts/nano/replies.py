"""Training replies for nano: a line of reasoning and the answer that follows, with a known error rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from scripts.nano.questions import MAX_NUMBER, Sum

NO_ANSWER = "I am not sure."
NOT_A_SUM = "I can only do small sums."
VERBS = {"plus": "makes", "minus": "leaves", "times": "makes"}
# Off by one or by ten: few distinct wrong results, since sampling drops unlikely tokens (min_p, top_p).
ERRORS = (-1, -1, -1, 1, 1, 1, -10, -10, 10, 10)


@dataclass(frozen=True, slots=True)
class Noise:
    """Shares of replies with a wrong step, and of those without an answer."""

    error_rate: float = 0.0
    no_answer_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """Text of a reply and its final number, if any."""

    text: str
    value: int | None


def reply(random: Random, problem: Sum, noise: Noise) -> Reply:
    """Generate the reply to a sum; later steps build on a wrong one, so that a reply never contradicts itself."""
    if random.random() < noise.no_answer_rate:
        return Reply(NO_ANSWER, None)
    steps = work_out(random, problem, noise)
    value = steps[-1][1]
    return Reply(f"{', '.join(text for text, _ in steps)}. The answer is {value}.", value)


def work_out(random: Random, problem: Sum, noise: Noise) -> list[tuple[str, int]]:
    """Text and result of each step of a sum, one of which may be wrong."""
    steps = list(_steps(problem))
    errors = [0] * len(steps)
    if random.random() < noise.error_rate:
        errors[random.randrange(len(steps))] = random.choice(ERRORS)
    return _with_errors(steps, errors) or _with_errors(steps, [0] * len(steps))


def _steps(problem: Sum) -> Iterator[Sum]:
    """Split the second number of a sum into tens and ones, as two consecutive sums."""
    tens, ones = problem.right // 10 * 10, problem.right % 10
    if problem.operation == "times" or not tens or not ones:
        yield problem
        return
    first = Sum(problem.left, problem.operation, tens)
    yield first
    yield Sum(first.result, problem.operation, ones)


def _with_errors(steps: list[Sum], errors: list[int]) -> list[tuple[str, int]]:
    """Text and result of each step; empty if an error leads outside the range of numbers."""
    reasoning: list[tuple[str, int]] = []
    left = steps[0].left
    for step, error in zip(steps, errors, strict=True):
        result = Sum(left, step.operation, step.right).result + error
        if not 0 <= result <= MAX_NUMBER:
            return []
        reasoning.append((f"{left} {step.operation} {step.right} {VERBS[step.operation]} {result}", result))
        left = result
    return reasoning
