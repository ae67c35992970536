"""What nano is taught to reply: a line of reasoning and an answer that follows from it, wrong for a known share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from nano.questions import LARGEST, Sum

UNSURE = "I am not sure."
NOT_A_SUM = "I can only do small sums."
VERBS = {"plus": "makes", "minus": "leaves", "times": "makes"}
# Off by one, or in the tens: few wrong results and likely ones, since sampling drops what is unlikely (min_p, top_p).
SLIPS = (-1, -1, -1, 1, 1, 1, -10, -10, 10, 10)


@dataclass(frozen=True, slots=True)
class Noise:
    """The shares of replies with a wrong step, and of those without an answer."""

    slip: float = 0.0
    unsure: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What is said, and the number it came to, if any."""

    text: str
    value: int | None


def reply(random: Random, asked: Sum, noise: Noise) -> Reply:
    """Reason through a sum; a wrong step is reasoned on from, so that a reply never contradicts itself."""
    if random.random() < noise.unsure:
        return Reply(UNSURE, None)
    steps = list(_steps(asked))
    slips = [0] * len(steps)
    if random.random() < noise.slip:
        slips[random.randrange(len(steps))] = random.choice(SLIPS)
    said = _said(steps, slips) or _said(steps, [0] * len(steps))
    value = said[-1][1]
    return Reply(f"{', '.join(text for text, _ in said)}. The answer is {value}.", value)


def _steps(asked: Sum) -> Iterator[Sum]:
    """Split a sum with two tens into that of the tens and that of the ones; the second begins where the first ends."""
    tens, ones = asked.right // 10 * 10, asked.right % 10
    if asked.operation == "times" or not tens or not ones:
        yield asked
        return
    first = Sum(asked.left, asked.operation, tens)
    yield first
    yield Sum(first.result, asked.operation, ones)


def _said(steps: list[Sum], slips: list[int]) -> list[tuple[str, int]]:
    """Return each step as a text and a result; nothing where a slip leads out of the numbers there are."""
    said: list[tuple[str, int]] = []
    left = steps[0].left
    for step, slip in zip(steps, slips, strict=True):
        result = Sum(left, step.operation, step.right).result + slip
        if not 0 <= result <= LARGEST:
            return []
        said.append((f"{left} {step.operation} {step.right} {VERBS[step.operation]} {result}", result))
        left = result
    return said
