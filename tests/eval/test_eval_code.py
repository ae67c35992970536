"""Programs in replies to HumanEval's prompts: finding them, running them in bubblewrap, scoring them meanwhile."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import process_time

import psutil
import pytest
from batch_files import stored_lines
from command_line import PYTHON
from dataset_files import cache_dataset, table
from scripted_command import run_here, start_scripted
from waiting import NewChildren, user_seconds, wait_for_end, wait_until

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.engine.local import thread_count
from cerebrum_cli.eval import scorers
from cerebrum_cli.eval.questions import Question, select
from cerebrum_cli.eval.scorers import ScoredAnswer, reply_scorer
from cerebrum_cli.eval.tasks import complete_test
from cerebrum_cli.programs.bubblewrap import Bubblewrap
from cerebrum_cli.programs.call_filter import call_filter
from cerebrum_cli.programs.code import extract_program, first_program
from cerebrum_cli.programs.code_result import CodeResult
from cerebrum_cli.programs.sandbox import Sandbox, require_sandbox

PROMPT = '''from typing import List


def double(numbers: List[int]) -> List[int]:
    """ Double each number.
    >>> double([1, 2])
    [2, 4]
    """
'''
TEST = "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n"

# Finding the program.

FUNCTION = "def double(numbers: List[int]) -> List[int]:\n    return [2 * number for number in numbers]\n"
BODY = "    result = []\n    for number in numbers:\n        result.append(2 * number)\n    return result\n"
REPLIES = json.loads((Path(__file__).parents[1] / "data" / "programs.json").read_text(encoding="utf-8"))


def result_of(program: str) -> str:
    """How a program that can be trusted does in the test."""
    module: dict[str, object] = {"__name__": "program"}
    try:
        exec(program, module)
        exec(complete_test(TEST, "double"), module)
    except Exception as error:
        return repr(error)
    return "passed"


@pytest.mark.parametrize(
    "reply",
    [
        f"```python\n{FUNCTION}\nassert double([1]) == [3]\n```",
        f"```python\n{FUNCTION}\nnumbers = input().split()\nprint(double(numbers))\n```",
        f"```python\n{FUNCTION}\nif __name__ == '__main__':\n    raise SystemExit\n```",
        f"```python\n{FUNCTION}```\nIn short:\n```python\ndef double(numbers: List[int]) -> List[int]:\n    ...\n```",
        f"```python\n{FUNCTION}```\n```python\ndef double(numbers):\n    raise NotImplementedError\n```",
        "```python\ndef double(numbers):\n    return [twice(number) for number in numbers]\n```\nwith\n"
        "```python\ndef twice(number):\n    return 2 * number\n\nassert twice(2) == 5\nprint(twice(input()))\n```",
        "```python\ndef double(numbers):\n    return [FACTOR * number for number in numbers]\n\nFACTOR = 2\n```",
        "```python\nclass First:\n    def double(self, n):\n        return 3 * n\n```\nBetter:\n"
        "```python\nclass Second:\n    def double(self, n):\n        return [2 * x for x in n]\n```",
    ],
)
def test_extraction_leaves_out_own_tests_and_stubs_and_finds_helpers(reply: str) -> None:
    program = extract_program(reply, PROMPT, "double")
    assert program is not None and result_of(program) == "passed", program


@pytest.mark.parametrize("reply", REPLIES["programs"].values(), ids=REPLIES["programs"])
def test_extraction_finds_a_program_in(reply: str) -> None:
    program = extract_program(reply, PROMPT, "double")
    assert program is not None
    assert result_of(program) == "passed", program


@pytest.mark.parametrize("reply", REPLIES["words"])
def test_extraction_finds_no_code_in_words(reply: str) -> None:
    assert extract_program(reply, PROMPT, "double") is None


@pytest.mark.parametrize("code", REPLIES["broken blocks"].values(), ids=REPLIES["broken blocks"])
def test_extraction_repairs_no_closed_block(code: str) -> None:
    program = extract_program(f"```python\n{code}```", PROMPT, "double")
    assert program is not None and result_of(program) != "passed"


@pytest.mark.parametrize(
    "reply",
    [
        "print(29)",
        "\ufeffif\xa0True:\n\xa0\xa0\xa0\xa0print(29)",
        "```\nimport math\nCOST = 29.5\n```\n```python\nprint(math.floor(COST))\n```\nIt prints:\n```\n31\n```",
        "```python\nprint(29)\n```\nOr:\n```python\nprint(31)\n```",
    ],
)
def test_first_program_of_a_reply_prints(reply: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(first_program(reply), {})
    assert capsys.readouterr().out == "29\n"


def test_extraction_keeps_the_helpers_of_the_prompt() -> None:
    prompt = f"import math\n\n\ndef twice(x):\n    return 2 * x\n\n\n{PROMPT}"
    program = extract_program("```python\ndef double(n):\n    return [twice(x) for x in n]\n```", prompt, "double")
    assert program is not None and result_of(program) == "passed"
    whole = f"{prompt}    return [twice(x) for x in numbers]\n"
    assert extract_program(f"```python\n{whole}```", prompt, "double") == whole.rstrip("\n")


@pytest.mark.parametrize("opening", ["(", "-", "not ", "f(", "[x for x in ", "lambda: ", "a.", "if x:\n  "])
def test_extraction_survives_deep_nesting(opening: str) -> None:
    extract_program(f"def double(numbers):\n    return {opening * 20_000}1", PROMPT, "double")
    extract_program(f"return {opening * 20_000}1\0", PROMPT, "double")


def test_extraction_survives_a_long_sum_below_the_function() -> None:
    program = extract_program(f"```\n{FUNCTION}\nTOTAL = {'+'.join(['1'] * 900)}\n```", PROMPT, "double")
    assert program is not None and result_of(program) == "passed"


LONG_REPLIES = {
    "helpers": f"```\n{FUNCTION}```\n" + "".join(f"```\ndef f{i}(): return f{i + 1}()\n```\n" for i in range(1000)),
    "decorators": "def double(numbers):\n" + "@twice\n" * 6000,
    "continued lines": f"```\n{FUNCTION}" + "x = \\\n" * 6000,
    "open strings": f"```\n{FUNCTION}" + "x = '''\n" * 6000,
}


@pytest.mark.slow
@pytest.mark.parametrize("reply", LONG_REPLIES.values(), ids=LONG_REPLIES)
def test_extraction_from_40_kilobytes_takes_seconds(reply: str) -> None:
    start = process_time()
    extract_program(reply.replace("2 * number", "f0()"), PROMPT, "double")
    assert process_time() - start < 10


# The sandbox: its filter of system calls, and where there is none.


def refusal() -> UsageError:
    with pytest.raises(UsageError) as caught:
        require_sandbox("bwrap")
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a `bwrap` can be put that is the only one on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path / "bin" / "bwrap"


def test_sandbox_is_refused_where_it_cannot_be(bwrap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal()
    assert "bwrap is not installed" in error.message and "apt install bubblewrap" in error.hint
    write_program(bwrap, "exit 0")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "on Linux on x86_64 or aarch64" in refusal().message


@pytest.mark.slow
def test_sandbox_is_refused_where_namespaces_are_forbidden(bwrap: Path) -> None:
    write_program(bwrap, "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1")
    error = refusal()
    assert error.message == "bubblewrap does not work here: bwrap: setting up uid map: Permission denied"
    assert "user namespaces" in error.hint


@pytest.mark.slow
def test_sandbox_is_refused_if_it_does_not_isolate(bwrap: Path) -> None:
    write_program(bwrap, f'while [ "$1" != -P ]; do shift; done; exec {PYTHON} "$@"')
    assert refusal().message.endswith("AssertionError: it has sockets")


# Running in it.


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """The sandbox of this machine."""
    try:
        return require_sandbox("bwrap")
    except UsageError as error:
        pytest.skip(f"{error.message}; {error.hint}")


def run(sandbox: Sandbox, code: str, test: str = "", timeout_s: float = 20.0) -> CodeResult:
    return sandbox.run(code, test, timeout_s)


@pytest.mark.slow
def test_sandbox_runs_a_program_and_its_test(sandbox: Sandbox) -> None:
    test = complete_test(TEST, "double")
    assert run(sandbox, f"{PROMPT}{BODY}", test) == CodeResult("passed")
    wrong = run(sandbox, f"{PROMPT}    return numbers\n", test)
    assert wrong.reason == "failed" and wrong.detail.endswith("AssertionError\n")
    assert 'File "test.py", line 2, in check' in wrong.detail
    assert "SyntaxError" in run(sandbox, "def double(:\n", test).detail
    assert "NameError: name 'double' is not defined" in run(sandbox, "", test).detail
    assert "NameError: name 'List' is not defined" in run(sandbox, FUNCTION, test).detail


SANDBOX_VARIABLES = {"HOME", "PWD", "PYTHONHASHSEED", "LC_CTYPE", "PYTHONPATH", "OPENBLAS_NUM_THREADS"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "exit()",
        "import unittest\nclass Test(unittest.TestCase):\n    def test(self): pass\nunittest.main()",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\n",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n",
        "import collections, datetime, decimal, hashlib, heapq, itertools, math, random, re, statistics, typing\n",
        "print('x' * 100_000_000)\n",
        "open('scratch', 'w').write('x')\nassert open('/tmp/scratch').read() == 'x'\n",
        "import numpy\nassert numpy.linalg.inv(numpy.eye(50)).sum() == 50\n",
        f"import os, sys\nassert os.environ.keys() <= {SANDBOX_VARIABLES}, os.environ\n",
        "assert hash('a') == hash('a') and 'ä'.encode() == open('f', 'w').write('ä') or True\n",
    ],
)
def test_sandbox_runs_ordinary_programs(sandbox: Sandbox, code: str) -> None:
    assert run(sandbox, code).reason == "passed"


WRITE_EVERYWHERE = "import os\nfor fd in range(3, 64):\n    try:\n        {}\n    except OSError: pass\nos._exit(0)"
MOUNT = """
import ctypes
ctypes.CDLL(None, use_errno=True).mount(None, b"/tmp", b"tmpfs", 0, None)
raise OSError(ctypes.get_errno(), "mount")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason", "detail"),
    [
        # no program passes that ends early
        ("import sys\nsys.exit(0)", "failed", ""),
        ("import sys\nsys.exit(1)", "failed", "SystemExit: 1"),
        ("import os\nos._exit(0)", "crashed", ""),
        ("def f():\n    try:\n        raise SystemExit\n    except BaseException:\n        pass\n", "failed", ""),
        (WRITE_EVERYWHERE.format("os.write(fd, b'passed\\n')"), "crashed", ""),
        (WRITE_EVERYWHERE.format("while True: os.write(fd, bytes(10**6))"), "crashed", ""),
        ("import os\nos.closerange(0, 64)\ndef f(): return 1", "crashed", ""),
        ("import ctypes\nctypes.string_at(0)", "crashed", ""),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "failed", "NameError"),  # process 1 ignores it
        # limits
        ("import time\ntime.sleep(60)", "timeout", ""),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "timeout", ""),
        ("def f(): return f()\nf()", "failed", "RecursionError"),
        ("x = b'x' * 10**10", "memory", ""),
        ("import mmap\nx = [mmap.mmap(-1, 2**28) for _ in range(4)]", "failed", "Cannot allocate memory"),
        ("import os\nos.memfd_create('x')", "failed", "PermissionError"),
        ("open('x', 'wb').write(bytes(2**25))", "failed", "File too large"),
        ("for i in range(4): open(str(i), 'wb').write(bytes(2**23))", "failed", "No space left on device"),
        ("x = [open('/dev/null') for _ in range(100)]", "failed", "Too many open files"),
        # isolation
        ("import os\nos.fork()", "failed", "PermissionError"),
        ("import subprocess\nsubprocess.run(['/bin/sh'])", "failed", "PermissionError"),
        ("import threading\nthreading.Thread(target=print).start()", "failed", "can't start new thread"),
        ("open('/etc/passwd')", "failed", "FileNotFoundError"),
        ("import os\nos.listdir('/proc')", "failed", "FileNotFoundError"),
        ("import socket\nsocket.socket()", "failed", "PermissionError"),
        ("open('/written', 'w')", "failed", "Read-only file system"),
        ("open({secret!r})", "failed", "FileNotFoundError"),
        ("import os\nos.environ['SECRET']", "failed", "KeyError: 'SECRET'"),
        (MOUNT, "failed", "PermissionError"),
    ],
)
def test_sandbox_limits_and_isolates(
    sandbox: Sandbox, code: str, reason: str, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    monkeypatch.setenv("SECRET", "x")
    code = code.replace("{secret!r}", repr(str(secret)))
    result = run(sandbox, code, "assert f() == 1", 20 if reason != "timeout" else 0.5)
    assert result.reason == reason and detail in result.detail, result


RUNNING = """
import sys
from cerebrum_cli.programs.sandbox import require_sandbox
require_sandbox(sys.argv[1]).run("while True: pass", "", timeout_s=60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_sandbox_leaves_no_process_after(signum: signal.Signals, each_sandbox: Sandbox) -> None:
    command = [sys.executable, "-c", RUNNING, each_sandbox.runner.name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as parent:
        program = psutil.Process(parent.pid)
        wait_until(lambda: any(user_seconds(each) > 0.1 for each in program.children(recursive=True)))
        running = program.children(recursive=True)
        os.killpg(parent.pid, signum)
        assert parent.wait(10) == -signum
        wait_for_end(running)


@pytest.mark.slow
def test_sandbox_that_fails_later_is_an_error(sandbox: Sandbox) -> None:
    for bwrap, problem in (("/bin/false", "it ended with exit code 1"), ("/missing/bwrap", ".*No such file")):
        with pytest.raises(UsageError, match=f"does not work here: {problem}"):
            run(Sandbox(Bubblewrap(bwrap, call_filter(platform.machine()))), "pass")


# Programs are scored while the model writes others.


needs_two_cores = pytest.mark.skipif(thread_count() < 2, reason="one core runs one program at a time")
IDS = tuple(f"H/{number}" for number in range(6))
FIRST = str(select(Question(index, id, "", "") for index, id in enumerate(IDS))[0].id)
SEVEN = "def check(candidate):\n    assert candidate() == 7\n"
Start = Callable[[], "subprocess.Popen[bytes]"]


def reply_with(name: str, seconds: float = 0.0) -> str:
    return f"```python\nimport time\n\ndef {name}():\n    time.sleep({seconds})\n    return 7\n```"


@pytest.fixture
def start(sandbox: Sandbox, tmp_path: Path, chatml_model: Path) -> Iterator[Start]:
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


@pytest.mark.slow
@pytest.mark.usefixtures("without_bubblewrap")
def test_eval_runs_code_in_monty_only_if_asked_to(tmp_path: Path, chatml_model: Path) -> None:
    programs = {"f1": "return 7", "f2": "return 8", "f3": "import fractions\n    return 7"}
    stubs = {name: f'def {name}():\n    """Seven."""' for name in programs}
    rows = [{"task_id": name, "prompt": stub, "test": SEVEN, "entry_point": name} for name, stub in stubs.items()]
    cache_dataset(tmp_path, "openai/openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet", table(rows))
    replies = {f"{stub}\n```": f"```python\ndef {name}():\n    {programs[name]}\n```" for name, stub in stubs.items()}

    def evaluate(*options: str) -> str:
        words = ("eval", "humaneval", "--run-code", "--offline", "-m", str(chatml_model), *options)
        return b"".join(start_scripted({"rows": replies}, tmp_path, *words).communicate(timeout=60)).decode()

    assert evaluate().startswith("error: bwrap is not installed\n")
    report = evaluate("--set", "sandbox=monty")
    assert re.search(r"accuracy +0\.333 ", report) and re.search(r"not supported by Monty +0\.333", report)
    assert re.search(r"sandbox +monty", report)
    rescored = run_here({}, tmp_path, "runs", "show", "humaneval-chatml", "--rescore", "--run-code", "--json")
    assert (rescored.object["accuracy"], rescored.object["unsupported"]) == (1 / 3, 1 / 3)


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
    new_children: NewChildren, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
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
