"""Mark a reply: extract its answer, and compare that with the correct one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from cerebrum_cli.answers.canonical import canonical, matches_gold
from cerebrum_cli.answers.extract import final_answer, final_words
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.eval import math_equality
from cerebrum_cli.eval.choices import chosen_letter
from cerebrum_cli.eval.code import extract_program
from cerebrum_cli.eval.line_process import LineProcess
from cerebrum_cli.eval.questions import Question

if TYPE_CHECKING:
    from cerebrum_cli.eval.code_sandbox import Program, ProgramPool

Match = Literal["answer", "exact", "contains", "regex", "math", "code"]
MATCHES: tuple[Match, ...] = get_args(Match)[:-2]  # to choose from; tasks have the others
SEARCH_S = 5.0  # for a regular expression in a reply
SEARCH = """
import json, re, sys
print("ready", flush=True)
for line in sys.stdin:
    found = re.search(*json.loads(line))
    print(json.dumps(found and found[0]), flush=True)
"""
MARKING = "marking"  # key of a fingerprint: the rules that marked a run, such as "1 with Math-Verify 0.9.0"
MATH_VERIFY = "Math-Verify"
MARKING_VERSION = 2  # of the rules by which replies are marked; raise it when a mark may change
_WORDS = re.compile(r"(?!(?:yes|no)\Z)[^\W\d_]{2}[^\\=^{}$<>|+*/]*+")  # normal form of an answer in words


class SearchTimeout(CerebrumError):
    """A reply takes too long to be searched for a regular expression."""


class Mark(NamedTuple):
    """The answer found in a reply, None if it states none, and whether it is correct."""

    answer: str | None
    correct: bool


class Unmarked(NamedTuple):
    """The text of a reply to a question; not `is_complete` if it was cut off."""

    text: str
    question: Question
    is_complete: bool


class Marker:
    """Marks replies, each under a key; programs run in the pool, beside other work. Close it to stop its processes."""

    def __init__(
        self,
        mark: Callable[[Unmarked], Mark | Program],
        pool: ProgramPool[Any] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._mark = mark
        self._pool = pool
        self.close = close
        self._marks: list[tuple[Any, Mark]] = []

    def add(self, key: Any, reply: Unmarked) -> None:
        """Mark a reply, or start its program, once a core is free."""
        mark = self._mark(reply)
        if isinstance(mark, Mark):
            self._marks.append((key, mark))
        else:
            assert self._pool
            self._pool.add((key, mark.code), mark)

    @property
    def is_running(self) -> bool:
        """Whether programs run or wait for a core."""
        return self._pool is not None and self._pool.is_running

    def marks(self, wait_s: float = 0.0) -> list[tuple[Any, Mark]]:
        """Take the marks known by now; if there are none, wait for one while any program runs."""
        marks, self._marks = self._marks, []
        if self._pool:
            results = self._pool.results(0.0 if marks else wait_s)
            marks += [(key, Mark(code, result.passed)) for (key, code), result in results]
        return marks


def marker(match: Match, questions: tuple[Question, ...]) -> Marker:
    """How replies are marked, other than code. Raises UsageError if a gold answer cannot be searched for."""
    if match == "math":
        return math_marker()
    if match in ("contains", "regex") and (question := next((each for each in questions if each.choices), None)):
        problem = f"--match {match} cannot score question {question.id}, which has choices"
        raise UsageError(problem, "a letter may be part of any word; use --match answer or exact")
    if match == "regex":
        for question in questions:
            try:
                re.compile(question.gold)
            except re.error as error:
                problem = f"the answer of question {question.id} is not a regular expression: {error}"
                raise UsageError(problem, "correct it in the question file, or use another --match") from error
        return pattern_marker()
    return Marker({"answer": mark_answer, "exact": mark_exact, "contains": mark_contains}[match])


def pattern_marker() -> Marker:
    """Search replies for regular expressions; marking a reply raises SearchTimeout if that takes too long.

    No other reply is then searched for that pattern: generation would wait for each of them.
    """
    process, slow = LineProcess("Python", "check its installation", "-I", "-S", "-c", SEARCH), set[str]()

    def mark(reply: Unmarked) -> Mark:
        pattern, text = reply.question.gold, reply.text
        answer = b"" if pattern in slow else process.ask((pattern, text), SEARCH_S)
        if not answer:
            slow.add(pattern)
            problem = f"searching a reply for {pattern} takes over {SEARCH_S:.0f} s"
            raise SearchTimeout(problem, "simplify the pattern: avoid nested repetition such as (a+)+")
        found = json.loads(answer)
        return Mark(text.strip() or None if found is None else found, found is not None)

    return Marker(mark, close=process.close)


def math_marker() -> Marker:
    """Compare final answers by their normal form, and where these differ by Math-Verify, if it is installed."""
    if math_equality.math_verify_version() is None:
        return Marker(mark_answer)
    math_verify = math_equality.MathVerify()

    def mark(reply: Unmarked) -> Mark:
        answer, is_correct = mark_answer(reply)
        if answer is not None and not is_correct:
            is_correct = math_verify.is_equal(answer, reply.question.gold)
        return Mark(answer, is_correct)

    return Marker(mark, close=math_verify.close)


def rules_of(match: Match) -> str:
    """The rules by which replies are marked now, as a fingerprint has them."""
    version = math_equality.math_verify_version() if match == "math" else None
    return f"{MARKING_VERSION} with {MATH_VERIFY} {version}" if version else str(MARKING_VERSION)


def describe_rules(marked_by: str | None) -> str:
    return f"rules version {marked_by}" if marked_by else "an older version's rules"


def comparison_of(marked_by: str | None) -> str:
    """How mathematical answers were compared by some rules, in words."""
    _, _, verifier = (marked_by or "").partition(" with ")
    lacks = "" if math_equality.math_verify_version() else f"; Math-Verify is not installed: {math_equality.INSTALL}"
    return f"answers are compared by their normal form {f'and by {verifier}' if verifier else f'only{lacks}'}"


def program_of(reply: Unmarked) -> str | None:
    return extract_program(reply.text, reply.question.stub, reply.question.entry_point)


def code_marker(run_code: bool, find_program: Callable[[Unmarked], str | None] = program_of) -> Marker:
    """Mark programs by running them against the question's test. Raises UsageError without a sandbox."""
    from cerebrum_cli.eval.code_sandbox import Program, ProgramPool, require_sandbox

    if not run_code:
        raise UsageError("this task runs programs that the model writes", "add --run-code to run them in a sandbox")

    def mark(reply: Unmarked) -> Mark | Program:
        code = find_program(reply)
        return Mark(None, False) if code is None else Program(code, reply.question.gold)

    pool = ProgramPool[Any](require_sandbox())
    return Marker(mark, pool, pool.close)


def mark_answer(reply: Unmarked) -> Mark:
    """Extract the final answer, or the letter of the chosen one, and compare what it means."""
    text, question, is_complete = reply
    if question.choices:
        letter = chosen_letter(text, question.choices, is_complete)
        return Mark(letter, letter == question.gold)
    answer = (final_words if is_in_words(question) else final_answer)(text, is_complete)
    return Mark(answer, matches_gold(answer, question.gold))


def is_in_words(question: Question) -> bool:
    """Whether words are the correct answer to a question, rather than a choice, a number, a letter, yes or no."""
    return not question.choices and _WORDS.fullmatch(canonical(question.gold)) is not None


def mark_exact(reply: Unmarked) -> Mark:
    answer = reply.text.strip()
    return Mark(answer or None, reply.is_complete and answer == reply.question.gold.strip())


def mark_contains(reply: Unmarked) -> Mark:
    text, gold = reply.text.strip(), reply.question.gold.strip()
    is_found = gold.casefold() in text.casefold()
    return Mark(gold if is_found else text or None, is_found)
