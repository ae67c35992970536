"""Replies are scored: by their final answer, the letter of a choice, text, Math-Verify, or running a program."""

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from cases import rows
from command_line import assert_error
from dataset_files import cache_dataset, table
from scripted_command import run_here, start_scripted
from waiting import NewChildren, wait_for_end, wait_until

from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.eval import math_verify as math_verify_module, scores as scores_module
from cerebrum_cli.eval.answered import Answered, Sample, Verdict
from cerebrum_cli.eval.bubblewrap import Bubblewrap
from cerebrum_cli.eval.math_verify import MathVerify, math_verify_version
from cerebrum_cli.eval.scores import SCORES, Match, program_of
from cerebrum_cli.eval.tasks import complete_test


def reply(text: str, reference: str, is_complete: bool = True, **values: Any) -> Answered:
    """A row with one reply."""
    return Answered(1, 0, (reference,), samples=(Sample(text, "stop" if is_complete else "length"),), **values)


def score(
    text: str, reference: str, choices: Sequence[str] = (), match: Match = "answer", is_complete: bool = True
) -> Verdict:
    with SCORES[match].open() as scorer:
        [[found]] = scorer([reply(text, reference, is_complete, prompt="?", choices=tuple(choices))])
        return found


@pytest.mark.parametrize(("case", "text", "given", "expected"), rows("scored_replies"))
def test_reply_is_scored_by_its_answer(case: str, text: str, given: dict[str, Any], expected: list[Any]) -> None:
    """Expected are the answer, whether it is correct, and for some whether it is stated."""
    found = score(text, **given)
    assert [found.answer, found.is_correct, found.is_stated][: len(expected)] == expected, case


@pytest.mark.slow
def test_choice_is_found_in_linear_time() -> None:
    def seconds(text: str) -> float:
        start = time.process_time()
        score(text, "B", ("oxygen", "carbon dioxide", "nitrogen", "argon"))
        return time.process_time() - start

    longer = ("A. ", "A or ", "answer ", "answer is ", "not A is best ", "\n\n", "argon ", "(A) ", "answer (", "\n- ")
    for unit in (*"ABab.,:( \n", *longer):
        # a quadratic pattern takes three seconds for 30,000 characters, and a quarter of that for half
        assert seconds(unit * (15_000 // len(unit))) < 0.2 or seconds(unit * (30_000 // len(unit))) < 2.0, unit


needs_math_verify = pytest.mark.skipif(math_verify_version() is None, reason="needs Math-Verify")


@pytest.fixture
def math_verify(monkeypatch: pytest.MonkeyPatch) -> Iterator[MathVerify]:
    monkeypatch.setattr(math_verify_module, "TIMEOUT_S", 20.0)
    verifier = MathVerify()
    yield verifier
    verifier.close()


@needs_math_verify
@pytest.mark.slow
def test_math_verify_accepts_other_forms_but_no_other_values(math_verify: MathVerify) -> None:
    wrong = [row for row in rows("math_forms") if math_verify.is_equal(*row[:2]) != row[2]]
    assert wrong == []
    assert not math_verify.is_equal("x" * 400, "x" * 400 + "+0")
    assert score(r"\boxed{1+√19, 1-√19}", r"1 \pm \sqrt{19}", match="math").is_correct


@needs_math_verify
@pytest.mark.slow
def test_math_verify_is_stopped_when_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verify_module, "TIMEOUT_S", 1.0)
    math_verify, found = MathVerify(), list[object]()

    def compare() -> None:  # signals, as Math-Verify's own limits, reach the main thread only
        start = time.monotonic()
        found.append(math_verify.is_equal("9^{9^{9^{9}}}", "3"))
        found.append(math_verify.is_equal("2^{10}", "1024"))
        found.append(time.monotonic() - start < 30)

    thread = Thread(target=compare)
    thread.start()
    thread.join()
    math_verify.close()
    assert found == [False, True, True]


def test_math_verify_that_cannot_be_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verify_module, "__name__", "no.such.module")
    math_verify = MathVerify()
    with pytest.raises(CerebrumError, match="Math-Verify cannot start") as error:
        math_verify.is_equal("2^{10}", "1024")
    assert error.value.hint.startswith("reinstall it: ")
    math_verify.close()


PROMPT = '''from typing import List


def twice(x):
    return 2 * x


def double(numbers: List[int]) -> List[int]:
    """ Double each number.
    >>> double([1, 2])
    [2, 4]
    """
'''
TEST = complete_test("def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n", "double")


@pytest.mark.parametrize(("case", "reply", "has_program"), rows("replies_with_programs"))
def test_program_of_a_reply_passes_its_test(case: str, reply: str, has_program: bool) -> None:
    program = f"{program_of(reply, PROMPT, 'double')}\n{TEST}"
    with nullcontext() if has_program else pytest.raises((AssertionError, SyntaxError)):
        exec(program, {"__name__": "program"})


SEVEN = "def check(candidate):\n    assert candidate() == 7\n"


def reply_with(name: str, seconds: float = 0.0) -> str:
    return f"```python\nimport time\n\ndef {name}():\n    time.sleep({seconds})\n    return 7\n```"


@pytest.mark.usefixtures("without_bubblewrap")
def test_scorer_of_code_needs_bubblewrap() -> None:
    with pytest.raises(UsageError, match="bwrap is not installed"), SCORES["code"].open():
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_eval_that_ends_while_programs_run_keeps_the_replies(
    bubblewrap: Bubblewrap, tmp_path: Path, chatml_model: Path, signum: signal.Signals, code: int
) -> None:
    """A signal ends the programs, too."""
    ids = [f"H/{number}" for number in range(6)]
    stubs = {id: f'def f{id[2:]}():\n    """Seven."""' for id in ids}
    rows = [{"task_id": id, "prompt": stub, "test": SEVEN, "entry_point": f"f{id[2:]}"} for id, stub in stubs.items()]
    cache_dataset(tmp_path, "openai/openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet", table(rows))
    replies = {f"{stub}\n```": reply_with(f"f{id[2:]}", 3 if id == ids[0] else 0) for id, stub in stubs.items()}
    options = ("humaneval", "--run-code", "--offline", "-m", str(chatml_model), "-o", "run.jsonl")
    run = tmp_path / "run.jsonl"
    process = start_scripted({"rows": replies}, tmp_path, "eval", *options)
    wait_until(lambda: run.exists() or process.poll() is not None)
    wait_until(lambda: bool(psutil.Process(process.pid).children(recursive=True)))
    running = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    wait_for_end(running)
    assert sorted(json.loads(line)["id"] for line in run.read_text().splitlines()) == ids
    shown = run_here({"rows": {}}, tmp_path, "runs", "show", str(run), "--run-code", "--json", "-q")
    assert (shown.object["n"], shown.object["accuracy"], shown.object["maj"]) == (6, 1.0, {})
    refused = run_here({"rows": {}}, tmp_path, "runs", "show", str(run))
    assert_error(refused, 2, "this task runs programs that the model writes")


@pytest.mark.slow
def test_scorer_runs_as_many_programs_as_cores(
    new_children: NewChildren, bubblewrap: Bubblewrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_module, "thread_count", lambda: 2)
    texts = (reply_with("f", 3), reply_with("f"), "I cannot.", reply_with("f").replace("7", "8"), reply_with("f"))
    rows = [reply(text, f"{SEVEN}\ncheck(f)", entry_point="f") for text in texts]
    most = 0
    with SCORES["code"].open() as scorer:
        scores = (score for [score] in scorer(rows))
        found = [next(scores).is_correct]
        most = len({*psutil.Process().children()} & {*new_children()})
        found += [score.is_correct for score in scores]
        assert found == [True, True, False, False, True]
        assert most <= 2
        endless = scorer([reply(reply_with("f", 60), f"{SEVEN}\ncheck(f)", entry_point="f")])
        Thread(target=lambda: next(endless, None), daemon=True).start()
        wait_until(lambda: bool(new_children()))
    assert new_children() == []
