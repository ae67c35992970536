"""A small batch, its input and its runs."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cerebrum_cli.core.row_fields import RowError, parse_template
from cerebrum_cli.rows.output_tables import table_for
from cerebrum_cli.rows.read import Input, InputOptions, RowList
from cerebrum_cli.rows.record import Record
from cerebrum_cli.rows.run import Run, open_run

T = TypeVar("T")
InputRow = Any  # a row that `batch` has read
FINGERPRINT: dict[str, Any] = {"model": "a", "temperature": 0.7, "stop": ("x",), "system": None}


@contextlib.contextmanager
def open_rows(
    data: bytes | str, shape: str = "txt", template: str | None = None, output: str = "out.jsonl", **options: Any
) -> Iterator[Input]:
    """Open the rows of a file."""
    reading = InputOptions(None if template is None else parse_template(template), **options)
    with tempfile.NamedTemporaryFile(suffix=f".{shape}") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        with reading.open(Path(file.name), None, Path(output)) as rows:
            yield rows


def rows_in(data: bytes | str, shape: str = "txt", template: str | None = None, **options: Any) -> tuple[InputRow, ...]:
    with open_rows(data, shape, template, **options) as rows:
        return tuple(rows)


KEYS = (
    *("id", "prompt", "text", "final_answer", "finish_reason", "prompt_tokens", "completion_tokens", "seed"),
    *("reasoning", "votes", "error"),
)


def output_object(row: InputRow, **values: Any) -> dict[str, Any]:
    """The object of a finished row."""
    object = {**dict.fromkeys(KEYS), "id": row.id, "prompt": row.prompt, **values}
    more = {"line": row.number if values.get("error") else None, "input": row.input}
    return object | {key: value for key, value in more.items() if value is not None}


TEXT = "Why?\nHow?\n\nWhé\u2028n?\nWho?\n"
ROWS = rows_in(TEXT)
ORDER = (2, 0, 3, 1)  # in which the rows finish


def answer(row: InputRow, text: str = "So.") -> dict[str, Any]:
    """The output object of a row; the row "Who?" has an error."""
    if row.prompt == "Who?":
        return output_object(row, error=asdict(RowError("prompt_too_long", "it is")))
    return output_object(row, text=f"{text} {row.prompt}", finish_reason="stop", seed=1)


@cache  # before the calls of a process that is killed are counted
def lines_of(text: str, shape: str = "txt", **options: Any) -> RowList:
    """The rows of a text."""
    with open_rows(text, shape, **options) as rows:
        return RowList(tuple((rows.source_of(data), rows.read(number, data)) for number, data in rows.records()))


def open_batch(
    output: Path, restart: bool = False, text: str = TEXT, retry_failed: bool = False, **changed: Any
) -> Run:
    made_with = Record({**FINGERPRINT, **changed})
    return open_run(output, made_with, lines_of(text), table_for(output, None), restart, retry_failed)


def finish(
    run: Run, rows: Sequence[InputRow], answer_text: str, order: Iterable[int] = (), most: int = 99
) -> list[int]:
    """Answer missing rows, up to a number of them, and complete the run if it has all; their positions."""
    with contextlib.closing(run):
        missing = [position for position in order or range(len(rows)) if position not in run.finished][:most]
        write_answers(run, missing, answer_text)
        if len(run.finished) == len(rows):
            run.complete()
    return missing


def write_answers(run: Run, positions: Iterable[int], text: str = "So.") -> None:
    """Answer missing rows, by their positions."""
    missing = {run.position_of(place): (place, row) for place, row in run.missing()}
    for position in positions:
        place, row = missing[position]
        run.write(place, answer(row, text))


def run(output: Path, restart: bool = False, text: str = "So.", **changed: Any) -> list[int]:
    return finish(open_batch(output, restart, **changed), ROWS, text, ORDER)


def run_some(output: Path, *positions: int, restart: bool = False, text: str = "So.", **changed: Any) -> None:
    with contextlib.closing(open_batch(output, restart, **changed)) as run:
        write_answers(run, positions, text)


def stored_lines(path: Path) -> list[str]:
    """The lines of the finished rows in a partial file, which another process may be writing."""
    lines = path.read_text().split("\n") if path.exists() else []
    return lines[1:-1]


class Killed(BaseException):
    """Simulates a killed process."""


@contextlib.contextmanager
def limited_calls(patch: pytest.MonkeyPatch, limit: int, torn: bool = False) -> Iterator[list[str]]:
    """Allow a number of system calls that write, and list them; then all raise Killed.

    With `torn`, the call after the last one, if it is a write, writes half.
    """
    made: list[str] = []

    def limited(name: str, call: Callable[..., T]) -> Callable[..., T]:
        def make(*arguments: Any, **options: Any) -> T:
            made.append(name)
            if len(made) <= limit:
                return call(*arguments, **options)
            if torn and len(made) == limit + 1 and name == "write":
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise Killed

        return make

    with patch.context() as patched:
        patched.setattr(os, "getpid", lambda: 2**22 + 1)  # of no process
        for name in ("open", "write", "fsync", "ftruncate", "replace", "unlink"):
            patched.setattr(os, name, limited(name, getattr(os, name)))
        yield made


def kill_at_each_call(
    folder: Path,
    patch: pytest.MonkeyPatch,
    work: Callable[[Path], object],
    prepare: Callable[[Path], object] = lambda output: None,
    name: str = "out.jsonl",
    torn: bool = False,
) -> Iterator[Path]:
    """Yield an output for each writing call of some work, which was killed there; no power is lost."""
    patch.setattr(os, "fsync", lambda _: None)
    for calls in range(-1, 10**9):
        output = folder / f"{calls}{torn}" / name
        output.parent.mkdir()
        prepare(output)
        if calls < 0:
            with limited_calls(patch, 10**9) as made:
                work(output)
            total = len(made)
            assert total > 5
        elif calls == total:
            return
        else:
            with limited_calls(patch, calls, torn), pytest.raises(Killed):
                work(output)
            yield output
