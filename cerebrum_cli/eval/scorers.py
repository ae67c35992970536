"""Score a reply: extract its answer, and compare that with the reference answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from cerebrum_cli.answers.canonical import canonical, equals_reference
from cerebrum_cli.answers.extract import final_answer
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
SCORING_RULES = "marking"  # key of a fingerprint: the rules that scored a run, such as "1 with Math-Verify 0.9.0"
MATH_VERIFY = "Math-Verify"
SCORING_VERSION = 1  # of the rules by which replies are scored; raise it when a score may change
_WORDS = re.compile(r"(?!(?:yes|no)\Z)[^\W\d_]{2}[^\\=^{}$<>|+*/]*+")  # normal form of an answer in words


class SearchTimeout(CerebrumError):
    """A reply takes too long to be searched for a regular expression."""


class ScoredAnswer(NamedTuple):
    """The answer that a reply states, if any, and whether it is correct."""

    answer: str | None
    correct: bool


class ReplyScorer:
    """Scores replies, each under a key; programs run in the pool, beside other work. Close it to stop its processes.

    `score` gets a question, the text of a reply, and whether the reply is complete.
    """

    def __init__(
        self,
        score: Callable[[Question, str, bool], ScoredAnswer | Program],
        pool: ProgramPool[Any] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._score = score
        self._pool = pool
        self.close = close
        self._scores: list[tuple[Any, ScoredAnswer]] = []

    def add(self, key: Any, question: Question, text: str, is_complete: bool = True) -> None:
        """Score a reply, or start its program, once a core is free."""
        score = self._score(question, text, is_complete)
        if isinstance(score, ScoredAnswer):
            self._scores.append((key, score))
        else:
            assert self._pool
            self._pool.add((key, score.code), score)

    @property
    def is_running(self) -> bool:
        """Whether programs run or wait for a core."""
        return self._pool is not None and self._pool.is_running

    def scores(self, wait_s: float = 0.0) -> list[tuple[Any, ScoredAnswer]]:
        """Take the scores known by now; if there are none, wait for one while any program runs."""
        scores, self._scores = self._scores, []
        if self._pool:
            results = self._pool.results(0.0 if scores else wait_s)
            scores += [(key, ScoredAnswer(code, result.passed)) for (key, code), result in results]
        return scores


def reply_scorer(match: Match, questions: tuple[Question, ...]) -> ReplyScorer:
    """How replies are scored, other than code. Raises UsageError if a reference answer cannot be searched for."""
    if match == "math":
        return math_scorer()
    if match in ("contains", "regex"):
        for question in questions:
            if question.choices:
                raise UsageError(
                    f"--match {match} cannot score question {question.id}, which has choices",
                    "a letter may be part of any word; use --match answer or exact",
                )
    if match == "regex":
        return regex_scorer(questions)
    return ReplyScorer({"answer": score_answer, "exact": score_exact, "contains": score_contains}[match])


def regex_scorer(questions: tuple[Question, ...]) -> ReplyScorer:
    """Search replies for regular expressions; adding a reply raises SearchTimeout if that takes too long.

    No other reply is then searched for that pattern: generation would wait for each of them.
    """
    for question in questions:
        try:
            re.compile(question.reference)
        except re.error as error:
            raise UsageError(
                f"the answer of question {question.id} is not a regular expression: {error}",
                "correct it in the question file, or use another --match",
            ) from error
    process = LineProcess("Python", "check its installation", "-I", "-S", "-c", SEARCH)
    slow: set[str] = set()

    def score(question: Question, text: str, _is_complete: bool) -> ScoredAnswer:
        pattern = question.reference
        response = b"" if pattern in slow else process.ask((pattern, text), SEARCH_S)
        if not response:
            slow.add(pattern)
            raise SearchTimeout(
                f"searching a reply for {pattern} takes over {SEARCH_S:.0f} s",
                "simplify the pattern: avoid nested repetition such as (a+)+",
            )
        match = json.loads(response)
        return ScoredAnswer(text.strip() or None, False) if match is None else ScoredAnswer(match, True)

    return ReplyScorer(score, close=process.close)


def math_scorer() -> ReplyScorer:
    """Compare final answers by their normal form, and where these differ by Math-Verify, if it is installed."""
    if math_equality.math_verify_version() is None:
        return ReplyScorer(score_answer)
    math_verify = math_equality.MathVerify()

    def score(question: Question, text: str, is_complete: bool) -> ScoredAnswer:
        answer, is_correct = score_answer(question, text, is_complete)
        if answer is not None and not is_correct:
            is_correct = math_verify.is_equal(answer, question.reference)
        return ScoredAnswer(answer, is_correct)

    return ReplyScorer(score, close=math_verify.close)


def code_scorer(run_code: bool, *, is_extracted: bool = False) -> ReplyScorer:
    """Score programs by running them against the question's test; with `is_extracted`, texts are programs.

    Raises UsageError without a sandbox.
    """
    from cerebrum_cli.eval.code_sandbox import Program, ProgramPool, require_sandbox

    if not run_code:
        raise UsageError("this task runs programs that the model writes", "add --run-code to run them in a sandbox")

    def score(question: Question, text: str, _is_complete: bool) -> ScoredAnswer | Program:
        code = text or None if is_extracted else extract_program(text, question.stub, question.entry_point)
        return ScoredAnswer(None, False) if code is None else Program(code, question.reference)

    pool = ProgramPool[Any](require_sandbox())
    return ReplyScorer(score, pool, pool.close)


def score_answer(question: Question, text: str, is_complete: bool = True) -> ScoredAnswer:
    """Extract the final answer, or the letter of the chosen one, and compare what it means."""
    if question.choices:
        letter = chosen_letter(text, question.choices, is_complete)
        return ScoredAnswer(letter, letter == question.reference)
    answer = final_answer(text, is_complete, is_in_words(question))
    return ScoredAnswer(answer, equals_reference(answer, question.reference))


def is_in_words(question: Question) -> bool:
    """Whether words are the correct answer to a question, rather than a choice, a number, a letter, yes or no."""
    return not question.choices and _WORDS.fullmatch(canonical(question.reference)) is not None


def score_exact(question: Question, text: str, is_complete: bool) -> ScoredAnswer:
    answer = text.strip()
    return ScoredAnswer(answer or None, is_complete and answer == question.reference.strip())


def score_contains(question: Question, text: str, _is_complete: bool) -> ScoredAnswer:
    reference = question.reference.strip()
    if reference.casefold() in text.strip().casefold():
        return ScoredAnswer(reference, True)
    return ScoredAnswer(text.strip() or None, False)


def rules_of(match: Match) -> str:
    """The rules by which replies are scored now, as a fingerprint has them."""
    version = math_equality.math_verify_version() if match == "math" else None
    return f"{SCORING_VERSION} with {MATH_VERIFY} {version}" if version else str(SCORING_VERSION)


def describe_rules(scored_by: str | None) -> str:
    return f"rules version {scored_by}" if scored_by else "unknown rules"


def comparison_of(scored_by: str | None) -> str:
    """How mathematical answers were compared by some rules, in words."""
    _, _, verifier = (scored_by or "").partition(" with ")
    if verifier:
        return f"answers are compared by their normal form and by {verifier}"
    lacks = "" if math_equality.math_verify_version() else f"; Math-Verify is not installed: {math_equality.INSTALL}"
    return f"answers are compared by their normal form only{lacks}"
