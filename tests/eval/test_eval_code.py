"""Programs in replies to HumanEval's prompts: finding them, and running them in bubblewrap."""

import json
import signal
from pathlib import Path

import psutil
import pytest
from command_line import assert_error
from dataset_files import cache_dataset, table
from scripted_command import run_here, start_scripted
from waiting import NewChildren, wait_for_end, wait_until

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.eval import scorers
from cerebrum_cli.eval.bubblewrap import Bubblewrap
from cerebrum_cli.eval.scorers import Written, opened_scorer, program_of
from cerebrum_cli.eval.tasks import complete_test

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

# Finding the program.

BODY = "    return [twice(number) for number in numbers]\n"
FUNCTION = f"def double(numbers: List[int]) -> List[int]:\n{BODY}"


@pytest.mark.parametrize(
    "reply",
    [
        f"Here it is:\n\n```python\n{FUNCTION}```\n\nIt doubles each number.",
        f"```python\n{PROMPT}{BODY}```",
        f"```\n{FUNCTION}",
        f"```python\n{BODY}```",
        f"```python\ndef double(numbers):\n    return 0\n```\nNo, this one:\n```python\n{FUNCTION}```",
        f"```python\n{FUNCTION}```\nUse it:\n```python\nprint(double([3]))\n```\nIt prints:\n```\n[6]\n```",
        BODY,
        FUNCTION,
    ],
)
def test_program_of_a_reply(reply: str) -> None:
    module: dict[str, object] = {"__name__": "program"}
    exec(program_of(reply, PROMPT, "double"), module)
    exec(TEST, module)


@pytest.mark.parametrize("reply", ["I cannot.", "", "```python\n```", f"```python\n{PROMPT}```"])
def test_reply_without_a_program_fails_its_test(reply: str) -> None:
    module: dict[str, object] = {"__name__": "program"}
    with pytest.raises((AssertionError, SyntaxError)):
        exec(f"{program_of(reply, PROMPT, 'double')}\n{TEST}", module)


# Programs run once all replies are there.


SEVEN = "def check(candidate):\n    assert candidate() == 7\n"


def reply_with(name: str, seconds: float = 0.0) -> str:
    return f"```python\nimport time\n\ndef {name}():\n    time.sleep({seconds})\n    return 7\n```"


@pytest.mark.usefixtures("without_bubblewrap")
def test_scorer_of_code_needs_bubblewrap() -> None:
    with pytest.raises(UsageError, match="bwrap is not installed"), opened_scorer("code"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_eval_that_ends_while_programs_run_keeps_the_replies(
    bubblewrap: Bubblewrap,
    tmp_path: Path,
    chatml_model: Path,
    signum: signal.Signals,
    code: int,
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
    new_children: NewChildren,
    bubblewrap: Bubblewrap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scorers, "thread_count", lambda: 2)
    texts = (reply_with("f", 3), reply_with("f"), "I cannot.", reply_with("f").replace("7", "8"), reply_with("f"))
    written = [Written(text, True, "", f"{SEVEN}\ncheck(f)", entry_point="f") for text in texts]
    most = 0
    with opened_scorer("code") as scorer:
        scores = scorer(written)
        found = [next(scores).is_correct]
        most = len({*psutil.Process().children()} & {*new_children()})
        found += [score.is_correct for score in scores]
        assert found == [True, True, False, False, True]
        assert most <= 2
        scorer([Written(reply_with("f", 60), True, "", f"{SEVEN}\ncheck(f)", entry_point="f")])
        wait_until(lambda: bool(new_children()))
    assert new_children() == []
