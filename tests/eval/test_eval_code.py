"""Programs in replies to HumanEval's prompts: finding them, running them in bubblewrap, scoring them meanwhile."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from batch_files import stored_lines
from dataset_files import cache_dataset, table
from scripted_command import start_scripted
from waiting import NewChildren, wait_for_end, wait_until

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.engine.capacity import thread_count
from cerebrum_cli.eval import scorers
from cerebrum_cli.eval.bubblewrap import Bubblewrap
from cerebrum_cli.eval.questions import Question, select
from cerebrum_cli.eval.scorers import ScoredAnswer, program_of, reply_scorer
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


# Programs are scored while the model writes others.


needs_two_cores = pytest.mark.skipif(thread_count() < 2, reason="one core runs one program at a time")
IDS = tuple(f"H/{number}" for number in range(6))
FIRST = str(select(Question(index, id, "", "") for index, id in enumerate(IDS))[0].id)
SEVEN = "def check(candidate):\n    assert candidate() == 7\n"
Start = Callable[[], "subprocess.Popen[bytes]"]


def reply_with(name: str, seconds: float = 0.0) -> str:
    return f"```python\nimport time\n\ndef {name}():\n    time.sleep({seconds})\n    return 7\n```"


@pytest.fixture
def start(bubblewrap: Bubblewrap, tmp_path: Path, chatml_model: Path) -> Iterator[Start]:
    """A function that evaluates a model whose first program takes seconds, on a task of six problems."""
    names = {id: f"f{id.removeprefix('H/')}" for id in IDS}
    stubs = {id: f'def {name}():\n    """Seven."""' for id, name in names.items()}
    rows = [{"task_id": id, "prompt": stub, "test": SEVEN, "entry_point": names[id]} for id, stub in stubs.items()]
    cache_dataset(tmp_path, "openai/openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet", table(rows))
    replies = {f"{stub}\n```": reply_with(names[id], 3 if id == FIRST else 0) for id, stub in stubs.items()}
    script = {"rows": replies, "pause": 0.001}
    options = ("--run-code", "--offline", "--parallel", "1", "-m", str(chatml_model), "-o", "run.jsonl")
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        processes.append(start_scripted(script, tmp_path, "eval", "humaneval", *options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("without_bubblewrap")
def test_scorer_of_code_needs_bubblewrap() -> None:
    with pytest.raises(UsageError, match="bwrap is not installed"):
        reply_scorer("code", ())


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_eval_scores_programs_beside_a_slow_one(
    start: Start, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    """A signal ends them all: the slow one takes longer than it waits for those that run."""
    partial = tmp_path / "run.jsonl.partial"
    process = start()
    wait_until(lambda: bool(stored_lines(partial)) or process.poll() is not None)
    running = psutil.Process(process.pid).children(recursive=True)
    assert running, "the first program"
    assert FIRST not in [json.loads(line)["id"] for line in stored_lines(partial)]
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    wait_for_end(running)
    saved = stored_lines(partial)
    assert FIRST not in [json.loads(line)["id"] for line in saved]  # it was finished, but not scored
    process = start()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err.decode()
    samples = (tmp_path / "run.jsonl").read_text().splitlines()
    assert set(saved) <= set(samples)
    assert sorted(json.loads(line)["id"] for line in samples) == sorted(IDS)
    assert all(json.loads(line)["correct"] for line in samples)


@pytest.mark.slow
def test_scorer_runs_as_many_programs_as_cores(
    new_children: NewChildren, bubblewrap: Bubblewrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding one never waits for a core: the loop that adds programs also takes the model's tokens."""
    monkeypatch.setattr(scorers, "thread_count", lambda: 2)
    questions = [Question(at, at, "", f"{SEVEN}\ncheck(f)", entry_point="f") for at in range(5)]
    texts = (reply_with("f", 3), reply_with("f"), "I cannot.", reply_with("f").replace("7", "8"), reply_with("f"))
    found: list[tuple[int, ScoredAnswer]] = []
    with closing(reply_scorer("code", ())) as scorer:
        for question, text in zip(questions, texts, strict=True):
            scorer.add(question.id, question, text)
        assert scorer.is_running
        while scores := scorer.scores(None):
            found += scores
            own = {*psutil.Process().children()} & {*new_children()}
            assert len(own) <= 2
        assert [key for key, _ in found][-1] == 0, "the slow one does not keep the others waiting"
        assert {key: score.correct for key, score in found} == {0: True, 1: True, 2: False, 3: False, 4: True}
        scorer.add(0, questions[0], reply_with("f", 60))
        wait_until(lambda: bool(new_children()))
    assert new_children() == []
