"""Questions for nano: small sums in several wordings, follow-ups about the result, and the correct answers."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

Operation = Literal["plus", "minus", "times"]
OPERATIONS: tuple[Operation, ...] = ("plus", "minus", "times")

MAX_NUMBER = 99  # of all numbers in a sum and of its result
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
    """Two numbers and an operation."""

    left: int
    operation: Operation
    right: int

    @property
    def result(self) -> int:
        """Correct result."""
        if self.operation == "plus":
            return self.left + self.right
        return self.left - self.right if self.operation == "minus" else self.left * self.right


@dataclass(frozen=True, slots=True)
class Question:
    """Wording of a sum."""

    text: str
    sum: Sum


def questions(seed: int, count: int, turns: int = 1) -> list[tuple[tuple[str, ...], str]]:
    """Distinct conversations: the user's message in each turn, and the correct answer to the last one."""
    random = Random(seed)
    conversations: dict[tuple[str, ...], str] = {}
    while len(conversations) < count:
        turns_so_far = [first_question(random)]
        while len(turns_so_far) < turns:
            turns_so_far.append(follow_up(random, turns_so_far[-1].sum.result))
        conversations.setdefault(tuple(question.text for question in turns_so_far), str(turns_so_far[-1].sum.result))
    return list(conversations.items())


def held_out() -> list[tuple[tuple[str, ...], str]]:
    """Questions excluded from training; their numbers occur in other wordings."""
    return questions(HELD_OUT_SEED, HELD_OUT_COUNT)


def first_question(random: Random) -> Question:
    """Generate a self-contained question."""
    operation = random.choice(OPERATIONS)
    name, other = random.sample(NAMES, 2)
    problem = _random_sum(random, operation)
    return _make_question(
        problem, random.choice(WORDINGS[operation]), name=name, other=other, things=random.choice(THINGS)
    )


def follow_up(random: Random, value: int) -> Question:
    """Generate a question about the result of the last reply."""
    possible: list[Operation] = ["minus"] if value >= MAX_NUMBER else ["plus", "minus"]
    if 0 < 2 * value <= MAX_NUMBER:
        possible.append("times")
    operation = random.choice(possible)
    if operation == "times":
        right = random.randint(2, 9) if value <= 9 else 2
        doubled = right == 2 and (value > 9 or random.random() < 0.5)
        wording = random.choice(DOUBLINGS if doubled else FOLLOW_UPS["times"])
    else:
        right = random.randint(1, min(20, MAX_NUMBER - value) if operation == "plus" else max(1, min(20, value)))
        wording = random.choice(FOLLOW_UPS[operation])
    return _make_question(Sum(value, operation, min(right, value) if operation == "minus" else right), wording)


def _random_sum(random: Random, operation: Operation) -> Sum:
    """Generate a sum with a result from 0 to MAX_NUMBER; about half have a single-digit second number."""
    if operation == "times":
        return Sum(random.randint(2, 9), operation, random.randint(2, 9))
    left = random.randint(1, MAX_NUMBER - 1)
    limit = left if operation == "minus" else MAX_NUMBER - left
    return Sum(left, operation, random.randint(1, min(limit, random.choice((9, MAX_NUMBER)))))


def _make_question(problem: Sum, wording: str, **words: str) -> Question:
    return Question(wording.format(left=problem.left, right=problem.right, **words), problem)
