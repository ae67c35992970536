"""Programs that a model wrote are marked while it writes others, and so is what is marked again."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from batch_files import complete_lines, without_position
from dataset_files import cache_dataset, table
from scripted_command import start_scripted
from waiting import wait_for_end, wait_until

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.engine.machine import thread_count
from cerebrum_cli.eval.code_sandbox import require_sandbox
from cerebrum_cli.eval.marking import Mark, Unmarked, code_marker
from cerebrum_cli.eval.questions import Question, select

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(thread_count() < 2, reason="one core runs one program at a time"),
]

IDS = tuple(f"H/{number}" for number in range(6))
FIRST = str(select(Question(index, id, "", "") for index, id in enumerate(IDS))[0].id)
TEST = "def check(candidate):\n    assert candidate() == 7\n"
Start = Callable[[], "subprocess.Popen[bytes]"]


def name_of(id: str) -> str:
    return f"f{id.removeprefix('H/')}"


def reply_with(name: str, seconds: float = 0.0) -> str:
    return f"```python\nimport time\n\ndef {name}():\n    time.sleep({seconds})\n    return 7\n```"


@pytest.fixture(autouse=True)
def _sandbox() -> None:
    try:
        require_sandbox()
    except UsageError as error:
        pytest.skip(error.message)


@pytest.fixture
def start(tmp_path: Path, chatml_model: Path) -> Iterator[Start]:
    """A function that evaluates a model whose first program takes seconds, on a task of six problems."""
    stubs = {id: f'def {name_of(id)}():\n    """Seven."""' for id in IDS}
    rows = [{"task_id": id, "prompt": stub, "test": TEST, "entry_point": name_of(id)} for id, stub in stubs.items()]
    cache_dataset(tmp_path, "openai/openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet", table(rows))
    replies = {f"{stub}\n```": reply_with(name_of(id), 4 if id == FIRST else 0) for id, stub in stubs.items()}
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


@pytest.mark.parametrize(("signum", "code", "has_first"), [(signal.SIGINT, 130, True), (signal.SIGKILL, -9, False)])
def test_eval_marks_programs_beside_a_slow_one(
    start: Start, tmp_path: Path, signum: signal.Signals, code: int, has_first: bool
) -> None:
    partial = tmp_path / "run.jsonl.partial"
    process = start()
    wait_until(lambda: bool(complete_lines(partial)) or process.poll() is not None)
    running = psutil.Process(process.pid).children(recursive=True)
    assert running, "the first program"
    assert FIRST not in [json.loads(line)["id"] for line in complete_lines(partial)]
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    wait_for_end(running)
    saved = complete_lines(partial)
    assert (FIRST in [json.loads(line)["id"] for line in saved]) is has_first  # it was finished, but not marked
    process = start()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    samples = complete_lines(tmp_path / "run.jsonl")
    assert set(map(without_position, saved)) <= set(samples)
    assert sorted(json.loads(line)["id"] for line in samples) == sorted(IDS)
    assert all(json.loads(line)["correct"] for line in samples)


def test_marker_runs_programs_beside_each_other() -> None:
    questions = [Question(at, at, "", f"{TEST}\ncheck(f)", entry_point="f") for at in range(3)]
    with closing(code_marker(run_code=True)) as marker:
        for question, text in zip(questions, (reply_with("f", 2), reply_with("f"), "I cannot."), strict=True):
            marker.add(question.id, Unmarked(text, question, True))
        found: list[tuple[int, Mark]] = []
        while marks := marker.marks(wait=True):
            found += marks
    assert [key for key, _ in found][-1] == 0
    assert {key: mark.correct for key, mark in found} == {0: True, 1: True, 2: False}
