"""Programs in Monty: what they print, what it does not support, and hostile ones."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
from cases import rows
from waiting import NewChildren, wait_for_end

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.programs import monty as monty_module
from cerebrum_cli.programs.monty import Monty, ProgramResult, find_monty, program_in


@pytest.fixture(scope="session")
def monty() -> Monty:
    return find_monty()


HOSTILE = (*rows("hostile_programs"), "(" * 10**5, "-" * 10**6 + "1")


@pytest.mark.slow
def test_hostile_programs_end_in_time_and_leave_nothing(
    new_children: NewChildren, monty: Monty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(monty_module, "TIMEOUT_S", 1.0)
    start = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        results = dict(zip(HOSTILE, threads.map(monty.run, HOSTILE), strict=True))
    assert time.monotonic() - start < 60
    assert [code for code, result in results.items() if result.printed] == []
    assert [code for code, result in results.items() if not result.error or len(result.error) > 9000] == []
    assert list(tmp_path.iterdir()) == []
    wait_for_end(new_children())


@pytest.mark.slow
def test_program_that_prints_without_end_is_ended(monty: Monty) -> None:
    result = monty.run("while True: print('x' * 10**6)")
    assert len(result.printed) < 9000 and result.error in ("it printed more than 16 MB", "it takes longer than 5 s")


@pytest.mark.parametrize("case", rows("programs"), ids=lambda case: case["code"])
def test_monty_prints_as_python_does_or_says_what_fails(monty: Monty, case: dict[str, Any]) -> None:
    result = monty.run(case["code"])
    assert result.is_unsupported is ("unsupported" in case)
    if result.is_unsupported:
        assert "Error: " in result.error
    elif "error" in case:
        assert result.printed == case["printed"]
        assert result.error.startswith("Traceback") and result.error.endswith(case["error"])
    else:
        assert result == ProgramResult(case["printed"], case["value"])


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
