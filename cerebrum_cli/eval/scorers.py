"""Score a reply: extract its answer, and compare that with the reference answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from threading import Event
from typing import NamedTuple

from cerebrum_cli.answers.final import compare_answer
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts
from cerebrum_cli.engine.capacity import thread_count
from cerebrum_cli.eval.bubblewrap import find_bubblewrap
from cerebrum_cli.eval.math_verify import MathVerify, math_verify_version
from cerebrum_cli.eval.runs import Match

FENCED = re.compile(r"(?ms)^[ \t]*```[^`\n]*\n(.*?)(?:^[ \t]*```|\Z)")


@frozen
class Written:
    """The text of a reply and whether it is complete; what was asked, and what is known of the right answer."""

    text: str
    is_complete: bool
    prompt: str
    reference: str
    choices: Texts = ()
    stub: str = ""
    entry_point: str = ""


class ScoredAnswer(NamedTuple):
    answer: str | None
    is_correct: bool
    is_stated: bool = False


Scorer = Callable[[Iterable[Written]], Iterator[ScoredAnswer]]


@contextmanager
def opened_scorer(match: Match) -> Iterator[Scorer]:
    """What scores replies, in their order; it may use processes meanwhile.

    Programs run in bubblewrap, as many at a time as there are cores. Raises UsageError if that does not work here.
    """
    if match == "code":
        bubblewrap = find_bubblewrap()
        is_closed = Event()

        def run(written: Written) -> ScoredAnswer:
            code = program_of(written.text, written.stub, written.entry_point)
            result = bubblewrap.run(code, written.reference, is_closed=is_closed)
            return ScoredAnswer(code, result.reason == "passed")

        threads = ThreadPoolExecutor(thread_count())
        try:
            yield partial(threads.map, run)
        finally:
            is_closed.set()
            threads.shutdown(cancel_futures=True)
    elif match == "math" and math_verify_version():
        with closing(MathVerify()) as math_verify:
            yield partial(map, partial(score_math, math_verify))
    else:
        yield partial(map, score_exact if match == "exact" else score_answer)


def program_of(reply: str, stub: str, entry_point: str) -> str:
    """The program of a reply to a prompt that ends with the beginning of a function, its stub.

    It is the stub, and after it the last fenced block that defines the function, or the last one, which may continue
    it; without a block, the whole reply.
    """
    blocks = FENCED.findall(reply) or [reply]
    defining = [block for block in blocks if f"def {entry_point}(" in block]
    return f"{stub.rstrip()}\n{(defining or blocks)[-1]}\n"


def require_run_code(match: Match, run_code: bool) -> None:
    """Raise UsageError if programs would run without consent, and for consent where none would."""
    if match == "code" and not run_code:
        raise UsageError("this task runs programs that the model writes", "add --run-code to run them in a sandbox")
    if run_code and match != "code":
        raise UsageError("--run-code applies only to humaneval", "omit --run-code")


def score_answer(written: Written) -> ScoredAnswer:
    found, is_correct = compare_answer(
        written.text, written.is_complete, written.reference, written.choices, written.prompt
    )
    if found is None:
        return ScoredAnswer(None, False)
    return ScoredAnswer(found.text, is_correct, found.is_stated)


def score_exact(written: Written) -> ScoredAnswer:
    answer = written.text.strip()
    return ScoredAnswer(answer or None, written.is_complete and answer == written.reference.strip())


def score_math(math_verify: MathVerify, written: Written) -> ScoredAnswer:
    """Compare final answers by their normal form, and where these differ by Math-Verify."""
    scored = score_answer(written)
    if scored.answer is None or scored.is_correct:
        return scored
    return scored._replace(is_correct=math_verify.is_equal(scored.answer, written.reference))
