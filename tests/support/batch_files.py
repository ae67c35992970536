"""A small batch and its journal."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import pytest

from cerebrum_cli.batch.readers import IndexedRows, InputOptions
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.row_fields import RowError, parse_template
from cerebrum_cli.results.results import open_results, read_saved
from cerebrum_cli.results.rows import ResultRows, Results

T = TypeVar("T")
InputRow = Any  # a row that `batch` has read
FINGERPRINT: dict[str, Any] = {"model": "a", "temperature": 0.7, "stop": ("x",), "system": None}


def open_rows(
    data: bytes | str, shape: str = "txt", template: str | None = None, output: str = "out.jsonl", **options: Any
) -> contextlib.closing[IndexedRows]:
    """Open rows that are piped in."""
    reading = InputOptions(None if template is None else parse_template(template), shape, **options)
    piped = BytesIO(data.encode() if isinstance(data, str) else data)
    return contextlib.closing(reading.open(Path("-"), piped, Path(output)))


def rows_in(data: bytes | str, shape: str = "txt", template: str | None = None, **options: Any) -> tuple[InputRow, ...]:
    with open_rows(data, shape, template, **options) as rows:
        return tuple(rows[position] for position in range(len(rows)))


def input_row(number: int, id: str | int, prompt: str, conversation: Conversation, **others: Any) -> InputRow:
    """A row as it is read."""
    [example] = rows_in("a")
    return replace(example, number=number, id=id, prompt=prompt, conversation=conversation, **others)


def result_rows(rows: Sequence[InputRow], sha256: str | None = None, output: str = "out.jsonl") -> ResultRows:
    """The rows of a result that is a table or JSON Lines, by its suffix."""
    fields = lambda position: rows[position].fields  # noqa: E731
    return replace(DESCRIBED[Path(output).suffix], size=len(rows), fields=fields, sha256=sha256)


def described(output: Path) -> ResultRows:
    with open_rows("prompt,b\na,b", "csv", output=output.name) as rows:
        return rows.for_output(output)


DESCRIBED = {suffix: described(Path(f"out{suffix}")) for suffix in (".jsonl", ".csv")}


KEYS = (
    *("id", "prompt", "text", "final_answer", "finish_reason", "prompt_tokens", "completion_tokens", "seed"),
    *("reasoning", "votes", "error"),
)


def output_object(row: InputRow, **values: Any) -> dict[str, Any]:
    """The object of a finished row."""
    fields = row.fields
    object = {**dict.fromkeys(KEYS), "id": row.id, "prompt": row.prompt, **values}
    more = {"line": fields["line"] if values.get("error") else None, "request": fields["request"], "input": row.input}
    return object | {key: value for key, value in more.items() if value is not None}


ROWS = rows_in("Why?\nHow?\n\nWhé\u2028n?\nWho?\n")
ORDER = (2, 0, 3, 1)  # in which the rows finish


def answer(row: InputRow, text: str = "So.") -> dict[str, Any]:
    """The output object of a row; the row "Who?" has an error."""
    if row.prompt == "Who?":
        return output_object(row, error=asdict(RowError("prompt_too_long", "it is")))
    return output_object(row, text=f"{text} {row.prompt}", seed=1)


def complete_result(text: str = "So.") -> bytes:
    lines = [json.dumps(answer(row, text), ensure_ascii=False).replace("\u2028", "\\u2028") for row in ROWS]
    return "".join(f"{line}\n" for line in lines).encode()


def open_batch(
    output: Path, restart: bool = False, rows: tuple[InputRow, ...] = ROWS, sha256: str | None = None, **changed: Any
) -> Results:
    return open_results(output, {**FINGERPRINT, **changed}, result_rows(rows, sha256), restart)


def open_growing(output: Path, questions: int) -> Results:
    return open_results(output, FINGERPRINT, result_rows(ROWS[:questions]), extent={"questions": questions})


def finish(
    journal: Results, rows: tuple[InputRow, ...], text: str, order: Sequence[int] = (), most: int = 99
) -> list[int]:
    """Answer missing rows, up to a number of them, and complete the result if it has all; their positions."""
    with contextlib.closing(journal):
        missing = [position for position in order or range(len(rows)) if position not in journal.finished][:most]
        for position in missing:
            journal.write_row(position, answer(rows[position], text))
        if len(journal.finished) == len(rows):
            journal.complete()
    return missing


def grow(output: Path, questions: int, text: str = "So.") -> list[int]:
    """Complete a result of the first rows, and return the positions it answered."""
    return finish(open_growing(output, questions), ROWS[:questions], text)


def run(output: Path, restart: bool = False, text: str = "So.", **changed: Any) -> list[int]:
    return finish(open_batch(output, restart, **changed), ROWS, text, ORDER)


def run_some(output: Path, *positions: int, restart: bool = False, text: str = "So.", **changed: Any) -> None:
    with contextlib.closing(open_batch(output, restart, **changed)) as journal:
        for position in positions:
            journal.write_row(position, answer(ROWS[position], text))


def saved_objects(output: Path) -> list[Any]:
    """The objects of the finished rows of a result, which another process may be writing."""
    saved = read_saved(output)
    return list(saved.objects()) if saved else []


def stored_lines(path: Path) -> list[str]:
    """The lines of the finished rows in a store, which another process may be writing."""
    if not path.exists() or not path.stat().st_size:
        return []
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [text for (text,) in database.execute("SELECT object FROM rows WHERE flags ORDER BY position")]


class UnsyncedConnection(sqlite3.Connection):
    """A connection for tests in which no power is lost."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        sqlite3.Connection.execute(self, "PRAGMA synchronous = OFF")


class Killed(BaseException):
    """Simulates a killed process."""


@contextlib.contextmanager
def limited_calls(patch: pytest.MonkeyPatch, limit: int, torn: bool = False) -> Iterator[list[str]]:
    """Allow a number of system calls that write, or calls of SQLite, and list them; then all raise Killed.

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

    class LimitedConnection(UnsyncedConnection):
        execute = limited("execute", sqlite3.Connection.execute)
        executemany = limited("executemany", sqlite3.Connection.executemany)
        executescript = limited("executescript", sqlite3.Connection.executescript)

    with patch.context() as patched:
        patched.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=LimitedConnection))
        patched.setattr(os, "getpid", lambda: 2**22 + 1)  # of no process
        patched.setattr(Thread, "run", lambda _: None)  # of the store: its calls would come in any order
        for name in ("open", "write", "fsync", "ftruncate", "replace", "unlink"):
            patched.setattr(os, name, limited(name, getattr(os, name)))
        yield made


def kill_at_each_call(
    folder: Path,
    patch: pytest.MonkeyPatch,
    work: Callable[[Path], object],
    prepare: Callable[[Path], object] = lambda output: None,
    torn: bool = False,
) -> Iterator[Path]:
    """Yield an output for each writing call of some work, which was killed there; no power is lost."""
    patch.setattr(os, "fsync", lambda _: None)
    patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=UnsyncedConnection))
    for calls in range(-1, 10**9):
        output = folder / str(calls) / "out.jsonl"
        output.parent.mkdir()
        prepare(output)
        if calls < 0:
            with limited_calls(patch, 10**9) as made:
                work(output)
            total = len(made)
            assert total > 10
        elif calls == total:
            return
        else:
            with limited_calls(patch, calls, torn), pytest.raises(Killed):
                work(output)
            yield output
