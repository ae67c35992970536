"""Score a reply: extract its answer, and compare that with the reference answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Any, NamedTuple

from cerebrum_cli.answers.final import compare_answer
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.engine.capacity import thread_count
from cerebrum_cli.eval.bubblewrap import find_bubblewrap
from cerebrum_cli.eval.line_process import INSTALL, LineProcess, MathVerify, math_verify_version
from cerebrum_cli.eval.questions import Basis, Match, Question, Questions

FENCED = re.compile(r"(?ms)^[ \t]*```[^`\n]*\n(.*?)(?:^[ \t]*```|\Z)")
SEARCH_S = 5.0  # for a regular expression in a reply
SEARCH = """
import json, re, sys
print("ready", flush=True)
for line in sys.stdin:
    found = re.search(*json.loads(line))
    print(json.dumps(found and found[0]), flush=True)
"""
SCORING_RULES = "scoring"  # key of a fingerprint: the rules that scored a run, such as "1 with Math-Verify 0.9.0"
MATH_VERIFY = "Math-Verify"
SCORING_VERSION = 6  # of the rules by which replies are scored; raise it when a score may change


class ScoredAnswer(NamedTuple):
    answer: str | None
    correct: bool
    basis: Basis | None = None


class ReplyScorer:
    """Scores replies, each under a key; programs run in threads, beside other work. Close it to stop its processes.

    `score` gets a question, the text of a reply, and whether the reply is complete.
    """

    def __init__(
        self,
        score: Callable[[Question, str, bool], ScoredAnswer | Future[ScoredAnswer]],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._score = score
        self.close = close
        self._running: dict[Future[ScoredAnswer], Any] = {}

    def add(self, key: Any, question: Question, text: str, is_complete: bool = True) -> None:
        """Score a reply, or start its program, once a core is free."""
        score = self._score(question, text, is_complete)
        if isinstance(score, ScoredAnswer):
            known, score = score, Future[ScoredAnswer]()
            score.set_result(known)
        self._running[score] = key

    @property
    def is_running(self) -> bool:
        return bool(self._running)

    def scores(self, wait_s: float | None) -> list[tuple[Any, ScoredAnswer]]:
        """Take the scores known by now; if there are none, wait for one while any program runs, None without limit."""
        if wait_s != 0.0:  # it is 0 after each token: `wait` takes longer
            wait(self._running, wait_s, FIRST_COMPLETED)
        done = [future for future in self._running if future.done()]
        return [(self._running.pop(future), future.result()) for future in done]


def reply_scorer(match: Match, questions: Questions) -> ReplyScorer:
    """How replies are scored. Raises UsageError if a reference answer cannot be searched for, or code cannot be run."""
    if match == "code":
        return code_scorer()
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


def regex_scorer(questions: Questions) -> ReplyScorer:
    """Search replies for regular expressions; adding a reply raises CerebrumError if that takes too long."""
    for question in questions:
        try:
            re.compile(question.reference)
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(
                f"the answer of question {question.id} is not a regular expression: {error}",
                "correct it in the question file, or use another --match",
            ) from error
    process = LineProcess("Python", "check its installation", "-I", "-S", "-c", SEARCH)

    def score(question: Question, text: str, _is_complete: bool) -> ScoredAnswer:
        response = process.ask((question.reference, text), SEARCH_S)
        if not response:
            raise CerebrumError(
                f"searching a reply for {question.reference} takes over {SEARCH_S:.0f} s",
                "simplify the pattern: avoid nested repetition such as (a+)+",
            )
        match = json.loads(response)
        if match is None:
            return ScoredAnswer(text.strip() or None, False)
        return ScoredAnswer(match, True)

    return ReplyScorer(score, process.close)


def math_scorer() -> ReplyScorer:
    """Compare final answers by their normal form, and where these differ by Math-Verify, if it is installed."""
    if math_verify_version() is None:
        return ReplyScorer(score_answer)
    math_verify = MathVerify()

    def score(question: Question, text: str, is_complete: bool) -> ScoredAnswer:
        scored = score_answer(question, text, is_complete)
        if scored.answer is None or scored.correct:
            return scored
        return scored._replace(correct=math_verify.is_equal(scored.answer, question.reference))

    return ReplyScorer(score, math_verify.close)


def code_scorer() -> ReplyScorer:
    """Score programs by running them with the question's test in bubblewrap, as many at a time as there are cores.

    Replies to a question without an entry point are programs. Raises UsageError if bubblewrap does not work here.
    """
    bubblewrap = find_bubblewrap()
    threads = ThreadPoolExecutor(thread_count())
    is_closed = Event()

    def run(question: Question, text: str) -> ScoredAnswer:
        code = program_of(text, question.stub, question.entry_point) if question.entry_point else text
        if not code:
            return ScoredAnswer(None, False)
        result = bubblewrap.run(code, question.reference, is_closed=is_closed)
        return ScoredAnswer(code, result.reason == "passed")

    def score(question: Question, text: str, _is_complete: bool) -> Future[ScoredAnswer]:
        return threads.submit(run, question, text)

    def close() -> None:
        is_closed.set()
        threads.shutdown(cancel_futures=True)

    return ReplyScorer(score, close)


def program_of(reply: str, stub: str, entry_point: str) -> str:
    """The program of a reply to a prompt that ends with the beginning of a function, its stub.

    It is the stub, and after it the last fenced block that defines the function, or the last one, which may continue
    it; without a block, the whole reply.
    """
    blocks = FENCED.findall(reply) or [reply]
    defining = [block for block in blocks if f"def {entry_point}(" in block]
    return f"{stub.rstrip()}\n{(defining or blocks)[-1]}\n"


def require_run_code(run_code: bool) -> None:
    if not run_code:
        raise UsageError("this task runs programs that the model writes", "add --run-code to run them in a sandbox")


def score_answer(question: Question, text: str, is_complete: bool) -> ScoredAnswer:
    found, is_correct = compare_answer(text, is_complete, question.reference, question.choices, question.prompt)
    if found is None:
        return ScoredAnswer(None, False, "missing")
    return ScoredAnswer(found.text, is_correct, "stated" if found.is_stated else "guessed")


def score_exact(question: Question, text: str, is_complete: bool) -> ScoredAnswer:
    answer = text.strip()
    return ScoredAnswer(answer or None, is_complete and answer == question.reference.strip())


def score_contains(question: Question, text: str, _is_complete: bool) -> ScoredAnswer:
    reference = question.reference.strip()
    if re.search(rf"(?<!\w){re.escape(reference.casefold())}(?!\w)", text.casefold()):  # as whole words
        return ScoredAnswer(reference, True)
    return ScoredAnswer(text.strip() or None, False)


def rules_of(match: Match) -> str:
    version = math_verify_version()
    if match == "math" and version:
        return f"{SCORING_VERSION} with {MATH_VERIFY} {version}"
    return str(SCORING_VERSION)


def describe_rules(scored_by: str | None) -> str:
    return f"rules version {scored_by}" if scored_by else "unknown rules"


def comparison_of(scored_by: str | None) -> str:
    _, _, verifier = (scored_by or "").partition(" with ")
    if verifier:
        return f"answers are compared by their normal form and by {verifier}"
    lacks = "" if math_verify_version() else f"; Math-Verify is not installed: {INSTALL}"
    return f"answers are compared by their normal form only{lacks}"
