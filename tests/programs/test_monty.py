"""Programs in Monty: what it cannot run, and hostile programs, in both sandboxes."""

import time
from pathlib import Path

import pytest
from command_line import PYTHON
from waiting import NewChildren, wait_for_end

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.programs import monty as monty_module
from cerebrum_cli.programs.code_result import CodeResult, Reason
from cerebrum_cli.programs.functions import tools_of
from cerebrum_cli.programs.monty import Monty
from cerebrum_cli.programs.sandbox import Sandbox, require_sandbox


@pytest.fixture(scope="session")
def monty() -> Sandbox:
    return require_sandbox("monty")


def run(sandbox: Sandbox, code: str, test: str = "") -> CodeResult:
    return sandbox.run(code, test, 5.0)


HOSTILE: dict[str, tuple[Reason, ...]] = {
    "while True: pass": ("timeout",),
    "import time\ntime.sleep(1e9)": ("timeout",),
    "x = 3 ** 10**8": ("timeout",),
    "x = []\nwhile True: x.append('x' * 10**6)": ("memory", "timeout"),
    "x = 'x' * 10**10": ("memory",),
    "while True: print('x' * 10**6)": ("memory", "timeout"),
    "import sys\nwhile True: print('x' * 10**6, file=sys.stderr)": ("memory", "timeout", "failed"),
    "def f(): return f()\nf()": ("failed",),
    "x = []\nfor _ in range(10**5): x = [x]\nprint(x)": ("failed", "crashed", "passed"),
    "(" * 10**5: ("failed", "memory", "crashed"),
    "-" * 10**6 + "1": ("failed", "memory", "crashed"),
    "open('/etc/passwd')": ("failed", "unsupported"),
    "import os\nos.listdir('/home')": ("failed", "unsupported"),
    "import os\nos.environ['HOME'].index('/root')": ("failed", "unsupported"),
    "import os\nos.system('id') and 1 / 0": ("failed", "unsupported"),
    "import os\nos.kill(0, 9)": ("failed", "unsupported"),
    "import socket\nsocket.create_connection(('127.0.0.1', 80))": ("failed", "unsupported"),
    "import ctypes\nctypes.string_at(0)": ("crashed", "unsupported"),
    "import subprocess\nsubprocess.run(['id'])": ("failed", "unsupported"),
    "raise KeyboardInterrupt": ("failed",),
    "raise MemoryError": ("memory",),
    "\0": ("failed",),
    "'\ud800'": ("failed", "passed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("code", HOSTILE, ids=lambda code: ascii(code[:30]))
def test_hostile_program_ends_in_time_and_leaves_nothing(
    new_children: NewChildren, each_sandbox: Sandbox, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    result = each_sandbox.run(code, "", 1.0)
    assert result.reason in HOSTILE[code], result
    assert time.monotonic() - start < 8
    assert len(result.detail) < 9000
    assert list(tmp_path.iterdir()) == []
    wait_for_end(new_children())


@pytest.mark.parametrize(
    "code",
    [
        "from fractions import Fraction",
        "import statistics",
        "import numpy as np",
        "class A: pass\nclass B(A): pass",
        "def f(): yield 1",
        "x = 1\ndel x",
        "n = int(input())",
        "import sys\nsys.exit()",
        "exit()",
        "from os import getpid",
        "import os\nos.getpid()",
        "(1).__class__",
    ],
)
def test_monty_says_what_it_does_not_support(monty: Sandbox, code: str) -> None:
    result = run(monty, f"print('before')\n{code}")
    assert result.reason == "unsupported"
    assert "Error: " in result.detail


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print(total)", "NameError: name 'total' is not defined"),
        ("import pandas", "ModuleNotFoundError: No module named 'pandas'"),
        ("'a'.no_such_method()", "AttributeError: 'str' object has no attribute 'no_such_method'"),
        ("raise NotImplementedError('to do')", "NotImplementedError: to do"),
        ("import math\nmath.foo()", "AttributeError: module 'math' has no attribute 'foo'"),
        ("from math import foo", "ImportError: cannot import name 'foo' from 'math' (unknown location)"),
        ("x = ", "SyntaxError: Expected an expression"),
        ("raise ValueError('a\\nNotImplementedError: b')", "NotImplementedError: b"),
        ("assert 1 == 2", "AssertionError: assert 1 == 2"),
    ],
)
def test_monty_tells_errors_of_a_program(monty: Sandbox, code: str, error: str) -> None:
    result = run(monty, f"print('before')\n{code}")
    assert result.reason == "failed"
    assert result.detail.startswith("Traceback" if "SyntaxError" in error else "before\nTraceback")
    assert result.detail.endswith(f"{error}\n")


def test_monty_runs_a_program_and_its_test(monty: Sandbox) -> None:
    code = "from typing import List\n\n\ndef double(x: List[int]) -> List[int]:\n    return [2 * y for y in x]"
    assert run(monty, code, "assert double([1]) == [2]").reason == "passed"
    assert run(monty, code, "assert double([1]) == [1]").reason == "failed"
    for early in ("raise SystemExit", "raise SystemExit(0)", "exit(0)"):
        assert run(monty, f"{code}\n{early}", "assert False").reason != "passed"


def test_monty_prints_as_python_does(monty: Sandbox) -> None:
    code = "import sys\nprint('æ', 1 / 3, f'{1234.5:,.2f}', end='')\nprint('!', file=sys.stderr)"
    assert run(monty, code) == CodeResult("passed", "æ 0.3333333333333333 1,234.50")
    long = run(monty, "print('x' * 9000 + 'y' * 20)").detail
    assert long == f"{'x' * 4000}\n[... 1,021 characters omitted ...]\n{'x' * 3979}{'y' * 20}\n"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("```python\nprint(6 * 7)\n```", "42\n"),
        ("x = 6\nx * 7", "42\n"),
        ("print('a')\n[].append(1)", "a\n"),
        ("import sys\nprint('!', file=sys.stderr)\n7", "7\n"),
    ],
)
def test_python_in_monty_prints_the_last_value(text: str, printed: str, monty: Sandbox) -> None:
    assert monty.evaluate(text, 5.0) == CodeResult("passed", printed)


def test_python_in_monty_names_what_it_lacks() -> None:
    [python] = tools_of(["python"], sandbox="monty")
    assert "not fractions" in python.spec.description and python.digest == "monty"
    result = python.run({"code": "import fractions"}).result
    assert result.splitlines()[-2:] == [
        "ModuleNotFoundError: No module named 'fractions'",
        "This interpreter has only a part of Python: write the program without it.",
    ]


@pytest.mark.usefixtures("without_bubblewrap")
def test_monty_is_the_default_and_needs_no_bubblewrap() -> None:
    sandbox = require_sandbox()
    assert isinstance(sandbox.runner, Monty) and run(sandbox, "print(1)") == CodeResult("passed", "1\n")
    with pytest.raises(UsageError, match="bwrap is not installed"):
        require_sandbox("bwrap")


def script(path: Path, text: str) -> Sandbox:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Sandbox(Monty(str(path)))


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("kill -s SEGV $$", "signal 11"),
        ("echo 'thread main panicked' >&2; exit 101", "thread main panicked"),
        ("exit 3", "exit code 3"),
        ("echo '!' >&2; echo 'error: ZeroDivisionError: division by zero' >&2; exit 1", "exit code 1"),
    ],
)
def test_crash_of_monty_is_a_result(text: str, detail: str, tmp_path: Path) -> None:
    assert run(script(tmp_path / "monty", text), "pass") == CodeResult("crashed", detail)


def test_monty_that_cannot_be_executed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Monty does not work here: "):
        run(Sandbox(Monty(str(tmp_path / "missing"))), "pass")


@pytest.mark.parametrize(
    "code", ["import sys\nsys.exit(3)", "import sys\nprint(1, file=sys.stderr)\n1 / 0", "raise SystemExit(3)"]
)
def test_end_of_a_program_does_not_end_the_command(code: str, monty: Sandbox) -> None:
    assert run(monty, code).reason in ("failed", "crashed", "unsupported")


def test_monty_that_opens_files_or_is_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "monty", f"exec {PYTHON} -")
    monkeypatch.setattr(monty_module, "monty_path", lambda: tmp_path / "monty")
    with pytest.raises(UsageError, match="Monty does not work here: passed: 42"):
        require_sandbox("monty")
    monkeypatch.setattr(monty_module, "monty_path", lambda: None)
    with pytest.raises(UsageError, match="Monty is not installed"):
        require_sandbox("monty")
