"""Programs in Monty: what they print, what it does not support, and hostile ones."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Timer

import pytest
from waiting import NewChildren, wait_for_end

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.programs import monty as monty_module
from cerebrum_cli.programs.monty import Monty, ProgramResult, find_monty, program_in


@pytest.fixture(scope="session")
def monty() -> Monty:
    return find_monty()


# Programs, and what they print at most.
HOSTILE = {
    "while True: pass": "",
    "import time\ntime.sleep(1e9)": "",
    "x = 3 ** 10**8": "",
    "x = []\nwhile True: x.append('x' * 10**6)": "",
    "x = []\nwhile True: x.append(bytearray(10**7))": "",
    "x = 'x' * 10**10": "",
    "import sys\nwhile True: print('x' * 10**6, file=sys.stderr)": "",
    "def f(): return f()\nf()": "",
    "(" * 10**5: "",
    "-" * 10**6 + "1": "",
    "open('/etc/passwd')": "",
    "open('/tmp/../etc/hosts')": "",
    "open('/tmp/a', 'wb').write(b'x' * 2**30)": "",
    "print(open('/proc/self/environ').read())": "",
    "import os\nprint(os.listdir('/home'))": "",
    "import os\nprint(os.environ['HOME'])": "",
    "import os\nprint(os.system('id'))": "",
    "import os\nwhile True: os.fork()": "",
    "import os\nos.kill(0, 9)": "",
    "import os\nos.write(1, b'42')": "",
    "import os\nos.symlink('/etc/passwd', '/tmp/l')\nprint(open('/tmp/l').read())": "",
    "import os\nos._exit(0)": "",
    "import sys\nsys.stdout.close()\nprint(5)": "",
    "import builtins\nbuiltins.print = lambda *_: None\nprint(5)": "",
    "import socket\nsocket.create_connection(('127.0.0.1', 80))": "",
    "import ctypes\nctypes.string_at(0)": "",
    "import subprocess\nsubprocess.run(['id'])": "",
    "import cerebrum_cli": "",
    "raise KeyboardInterrupt": "",
    "raise SystemExit(3)": "",
    "\0": "",
    "input()": "",
}


@pytest.mark.slow
def test_hostile_programs_end_in_time_and_leave_nothing(
    new_children: NewChildren, monty: Monty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        results = dict(zip(HOSTILE, threads.map(monty.run, HOSTILE), strict=True))
    assert time.monotonic() - start < 60
    assert {code: result.printed for code, result in results.items()} == HOSTILE
    assert [code for code, result in results.items() if not result.error or len(result.error) > 9000] == []
    assert list(tmp_path.iterdir()) == []
    wait_for_end(new_children())


@pytest.mark.slow
def test_program_that_prints_without_end_is_ended(monty: Monty) -> None:
    result = monty.run("while True: print('x' * 10**6)")
    assert len(result.printed) < 9000 and result.error in ("it printed more than 16 MB", "it takes longer than 5 s")


@pytest.mark.parametrize(
    "code",
    [
        "from fractions import Fraction",
        "import numpy as np",
        "class A: pass\nclass B(A): pass",
        "def f(): yield 1",
        "x = 1\ndel x",
        "import sys\nsys.exit()",
        "from os import getpid",
        "open('a')",
    ],
)
def test_monty_says_what_it_does_not_support(monty: Monty, code: str) -> None:
    result = monty.run(f"print('before')\n{code}")
    assert result.is_unsupported and "Error: " in result.error


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print(total)", "NameError: name 'total' is not defined"),
        ("'a'.no_such_method()", "AttributeError: 'str' object has no attribute 'no_such_method'"),
        ("assert 1 == 2", "AssertionError: assert 1 == 2"),
    ],
)
def test_monty_tells_errors_of_a_program(monty: Monty, code: str, error: str) -> None:
    result = monty.run(f"print('before')\n{code}")
    assert not result.is_unsupported and result.printed == "before\n"
    assert result.error.startswith("Traceback") and result.error.endswith(error)


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("print('æ', 1 / 3, f'{1234.5:,.2f}', end='')", ProgramResult("æ 0.3333333333333333 1,234.50")),
        ("import sys\nprint('!', file=sys.stderr)\n7", ProgramResult("", "7")),
        ("print('a')\n[].append(1)", ProgramResult("a\n")),
        ("def main():\n    print(42)\n\nif __name__ == '__main__':\n    main()", ProgramResult("42\n")),
        (
            "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\nprint(A(42).x)",
            ProgramResult("42\n"),
        ),
    ],
)
def test_monty_prints_as_python_does(monty: Monty, code: str, result: ProgramResult) -> None:
    assert monty.run(code) == result


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("print(29)", "print(29)"),
        ("Here:\n```python\nprint(29)\n```\nIt prints:\n```\n29\n```", "print(29)\n"),
        ("```python\nprint(29)", "print(29)"),
        ("1. First:\n\n   ```python\n   x = 2\n   print(x)\n   ```\n", "x = 2\nprint(x)\n"),
    ],
)
def test_program_in_a_reply(reply: str, code: str) -> None:
    assert program_in(reply) == code


def test_monty_ends_when_it_is_closed(monty: Monty, new_children: NewChildren) -> None:
    scope, start = Event(), time.monotonic()
    Timer(0.2, scope.set).start()
    assert monty.run("while True: pass", scope).error
    assert time.monotonic() - start < 3 and new_children() == []


def script(path: Path, text: str) -> Monty:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Monty(str(path))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("kill -s SEGV $$", "it ended with exit code -11"),
        ("echo 'error: thread main panicked' >&2; exit 101", "thread main panicked"),
        ("exit 3", "it ended with exit code 3"),
    ],
)
def test_crash_of_monty_is_a_result(text: str, error: str, tmp_path: Path) -> None:
    assert script(tmp_path / "monty", text).run("pass") == ProgramResult("", error=error)


def test_monty_that_is_missing_or_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^Monty does not work here: "):
        Monty(str(tmp_path / "missing")).run("pass")
    find_monty.cache_clear()
    monkeypatch.setattr(monty_module, "PACKAGE", "no-such-package")
    with pytest.raises(UsageError, match="Monty is not installed"):
        find_monty()
