"""What nano is asked: small sums in several wordings, follow-ups on their result, and what each should come to."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

Operation = Literal["plus", "minus", "times"]
OPERATIONS: tuple[Operation, ...] = ("plus", "minus", "times")

LARGEST = 99  # of all numbers in a sum and of its result
HELD_OUT_SEED, HELD_OUT_COUNT = 2024, 200

NAMES = ("Tom", "Anna", "Maria", "Peter", "Sam", "Lucy", "Ben", "Eva")
THINGS = ("apples", "coins", "books", "pens", "cards", "eggs", "stones", "cakes")
WORDINGS: dict[Operation, tuple[str, ...]] = {
    "plus": (
        "What is {left} plus {right}?",
        "What is {left} + {right}?",
        "{left} + {right}?",
        "What is {left}+{right}?",
        "How much is {left} plus {right}?",
        "Add {right} to {left}.",
        "What is the sum of {left} and {right}?",
        "{name} has {left} {things} and buys {right} more. How many {things} does {name} have now?",
        "There are {left} {things} in a bag and {right} in a box. How many {things} are there?",
    ),
    "minus": (
        "What is {left} minus {right}?",
        "What is {left} - {right}?",
        "{left} - {right}?",
        "What is {left}-{right}?",
        "How much is {left} minus {right}?",
        "Take {right} away from {left}.",
        "What is left of {left} without {right}?",
        "{name} has {left} {things} and gives {right} to {other}. How many {things} are left?",
        "There were {left} {things} in a box, and {name} took {right}. How many {things} are left?",
    ),
    "times": (
        "What is {left} times {right}?",
        "What is {left} * {right}?",
        "{left} * {right}?",
        "What is {left}*{right}?",
        "How much is {left} times {right}?",
        "Multiply {left} by {right}.",
        "What is the product of {left} and {right}?",
        "There are {left} bags with {right} {things} each. How many {things} are there?",
        "{name} buys {left} boxes of {right} {things}. How many {things} does {name} have now?",
    ),
}
FOLLOW_UPS: dict[Operation, tuple[str, ...]] = {
    "plus": ("And if you add {right} to that?", "Now add {right}.", "And {right} more?", "What is that plus {right}?"),
    "minus": ("And if you take {right} away?", "Now subtract {right}.", "And {right} less?", "Minus {right}?"),
    "times": ("And {right} times that?", "Now multiply it by {right}.", "What is that times {right}?"),
}
DOUBLINGS = ("Double it.", "And twice that?")


@dataclass(frozen=True, slots=True)
class Sum:
    """Two numbers and what is done with them."""

    left: int
    operation: Operation
    right: int

    @property
    def result(self) -> int:
        """What the sum comes to."""
        if self.operation == "plus":
            return self.left + self.right
        return self.left - self.right if self.operation == "minus" else self.left * self.right


@dataclass(frozen=True, slots=True)
class Question:
    """A sum as somebody asks for it."""

    text: str
    sum: Sum


def questions(seed: int, count: int, turns: int = 1) -> list[tuple[tuple[str, ...], str]]:
    """Return different conversations: what a user says in each of the turns, and the answer that is right at last."""
    random = Random(seed)
    found: dict[tuple[str, ...], str] = {}
    while len(found) < count:
        asked = [opening(random)]
        while len(asked) < turns:
            asked.append(follow_up(random, asked[-1].sum.result))
        found.setdefault(tuple(question.text for question in asked), str(asked[-1].sum.result))
    return list(found.items())


def held_out() -> list[tuple[tuple[str, ...], str]]:
    """Return the questions that nano is never trained on: their numbers it has seen, but not in these words."""
    return questions(HELD_OUT_SEED, HELD_OUT_COUNT)


def opening(random: Random) -> Question:
    """Draw a question that stands for itself."""
    operation = random.choice(OPERATIONS)
    name, other = random.sample(NAMES, 2)
    asked = _drawn(random, operation)
    return _worded(asked, random.choice(WORDINGS[operation]), name=name, other=other, things=random.choice(THINGS))


def follow_up(random: Random, value: int) -> Question:
    """Draw a question about the number the last reply came to."""
    possible: list[Operation] = ["minus"] if value >= LARGEST else ["plus", "minus"]
    if 0 < 2 * value <= LARGEST:
        possible.append("times")
    operation = random.choice(possible)
    if operation == "times":
        right = random.randint(2, 9) if value <= 9 else 2
        doubled = right == 2 and (value > 9 or random.random() < 0.5)
        wording = random.choice(DOUBLINGS if doubled else FOLLOW_UPS["times"])
    else:
        right = random.randint(1, min(20, LARGEST - value) if operation == "plus" else max(1, min(20, value)))
        wording = random.choice(FOLLOW_UPS[operation])
    return _worded(Sum(value, operation, min(right, value) if operation == "minus" else right), wording)


def _drawn(random: Random, operation: Operation) -> Sum:
    """Draw a sum whose result is neither negative nor too large; every other one has a small second number."""
    if operation == "times":
        return Sum(random.randint(2, 9), operation, random.randint(2, 9))
    left = random.randint(1, LARGEST - 1)
    room = left if operation == "minus" else LARGEST - left
    return Sum(left, operation, random.randint(1, min(room, random.choice((9, LARGEST)))))


def _worded(asked: Sum, wording: str, **words: str) -> Question:
    return Question(wording.format(left=asked.left, right=asked.right, **words), asked)
