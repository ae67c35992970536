"""The checkpoint beside a partial file: it spares parsing, and whatever is wrong with it only costs parsing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import batch_files
import pytest
from batch_files import FINGERPRINT, answer, kill_at_each_call, rows_in, run

from cerebrum_cli.batch.rows import InputRow, result_rows
from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.row_events import RowCounts
from cerebrum_cli.runs import partial
from cerebrum_cli.runs.journal import Journal, open_journal
from cerebrum_cli.runs.output_files import output_paths

LINES = "Why?\nHow?\nWho?\nWhen?\nWhy?\nWhere?\n"
SESSIONS = ((3, 0), (2, 5), (1,))  # positions of the rows that finish before each interruption; the last row is missing


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "CHECKPOINT_LINES", 1)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An interrupted batch, whose checkpoint has a block for each session."""
    output = tmp_path / "out.jsonl"
    interrupt(output)
    return output


def interrupt(output: Path, text: str = "So.") -> None:
    for positions in SESSIONS:
        with contextlib.closing(open_batch(output)) as journal:
            write(journal, rows_in(LINES), positions, text)


def open_batch(
    output: Path, lines: str = LINES, retry_failed: bool = False, parsed: list[str] | None = None
) -> Journal:
    """Open the batch of some lines; add the text of each line that is parsed to a list."""
    rows = result_rows(rows_in(lines), lines)

    def count(object: Mapping[str, Any]) -> RowCounts:
        if parsed is not None and object["error"] is None:
            parsed.append(object["text"])
        return rows.schema.count(object)

    return open_journal(
        output, FINGERPRINT, replace(rows, schema=replace(rows.schema, count=count)), False, retry_failed
    )


def write(journal: Journal, rows: tuple[InputRow, ...], positions: tuple[int, ...], text: str = "So.") -> None:
    for position in positions:
        journal.write(position, answer(rows[position], text))


def complete(output: Path, lines: str = LINES) -> tuple[list[int], bytes]:
    """Answer the missing rows; return their positions and the result."""
    rows = rows_in(lines)
    with contextlib.closing(open_batch(output, lines)) as journal:
        missing = [position for position in range(len(rows)) if position not in journal.finished]
        write(journal, rows, tuple(missing), "Later.")
        journal.complete()
    return missing, output.read_bytes()


def resumed(output: Path) -> tuple[list[int], RowCounts, list[str]]:
    """The finished rows, their counts, and the texts of the lines that were parsed."""
    parsed: list[str] = []
    with contextlib.closing(open_batch(output, parsed=parsed)) as journal:
        return list(journal.finished), journal.counts, parsed


def test_resume_with_a_checkpoint_parses_no_line(output: Path) -> None:
    assert resumed(output) == ([0, 1, 2, 3, 5], RowCounts(1, errors=("line 3: it is",)), [])
    checkpoint = output_paths(output).checkpoint
    assert [len(json.loads(block.split(b" ", 2)[2])) for block in checkpoint.read_bytes().splitlines()] == [2, 2, 1]
    missing, result = complete(output)
    assert missing == [4]
    assert [json.loads(line)["id"] for line in result.splitlines()] == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in output.parent.iterdir()} == {"out.jsonl", "out.jsonl.meta.json"}


def test_small_batch_has_no_checkpoint(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "CHECKPOINT_LINES", 6)
    output_paths(output).checkpoint.unlink()
    assert len(resumed(output)[2]) == 4
    assert not output_paths(output).checkpoint.exists()


def test_failed_rows_in_a_checkpoint_are_retried(output: Path) -> None:
    with contextlib.closing(open_batch(output, retry_failed=True)) as journal:
        assert (list(journal.finished), journal.counts) == ([0, 1, 3, 5], RowCounts())
        journal.write(2, {**answer(rows_in(LINES)[2]), "text": "Me.", "error": None})
    assert resumed(output) == ([0, 1, 2, 3, 5], RowCounts(), [])
    assert json.loads(complete(output)[1].splitlines()[2])["text"] == "Me."


def every_prefix(checkpoint: bytes) -> list[bytes]:
    return [checkpoint[:size] for size in range(len(checkpoint))]


@pytest.mark.parametrize(
    "damaged",
    [
        every_prefix,
        lambda good: [good[:at] + bytes(len(good) - at) for at in range(0, len(good), 7)],
        lambda good: [good[:at] + b"7" + good[at + 1 :] for at in range(0, len(good), 5)],
        lambda good: [b"".join(reversed(good.splitlines(keepends=True))), good + good, good.split(b"\n", 1)[1]],
        lambda good: [b"\n", b"mine", b"1 2 3\n", b"\xff" * 99, b"0 99999999999999 []\n" + good],
    ],
    ids=["torn", "zeros", "changed", "reordered", "foreign"],
)
def test_damaged_checkpoint_only_means_more_parsing(output: Path, damaged: Callable[[bytes], list[bytes]]) -> None:
    """What matches is used, and the next block continues from there."""
    checkpoint, lines = output_paths(output).checkpoint, output_paths(output).partial.read_bytes()
    good, expected = checkpoint.read_bytes(), resumed(output)
    for content in damaged(good):
        checkpoint.write_bytes(content)
        assert resumed(output)[:2] == expected[:2]
        assert resumed(output) == expected  # the lines that were parsed are in the checkpoint now
        assert output_paths(output).partial.read_bytes() == lines
    checkpoint.write_bytes(content)
    damaged_result = complete(output)
    output.unlink()
    output_paths(output).meta.unlink()
    interrupt(output)
    checkpoint.unlink()
    assert complete(output) == damaged_result


def test_checkpoint_of_another_batch_is_ignored(output: Path, tmp_path: Path) -> None:
    expected = resumed(output)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "out.jsonl"
    interrupt(other, "No.")
    output_paths(output).checkpoint.write_bytes(output_paths(other).checkpoint.read_bytes())
    finished, counts, parsed = resumed(output)
    assert (finished, counts, len(parsed)) == (*expected[:2], 4)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:3],
        lambda lines: [*lines[:3], lines[3][:20]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[0].replace(b"So.", b"No."), *lines[1:]],
        lambda lines: lines[::-1],
        lambda lines: [],
    ],
    ids=["truncated", "torn", "without a line", "another text", "reordered", "empty"],
)
def test_checkpoint_of_a_changed_partial_file_is_ignored(
    output: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    paths = output_paths(output)
    lines = b"".join(change(paths.partial.read_bytes().splitlines(keepends=True)))
    checkpoint = paths.checkpoint.read_bytes()
    results = []
    for content in (checkpoint, b""):
        paths.partial.write_bytes(lines)
        paths.checkpoint.write_bytes(content)
        finished, counts, _ = resumed(output)
        results.append((finished, counts, complete(output)))
        output.unlink()
        paths.meta.unlink()
        interrupt(output)
    assert results[0] == results[1]


def test_changed_input_makes_a_checkpoint_of_its_own(output: Path) -> None:
    changed = "When?\nHow?\nWhy?\nWhy not?\n"
    with contextlib.closing(open_batch(output, changed)) as journal:
        assert list(journal.finished) == [0, 1, 2]
    parsed: list[str] = []
    with contextlib.closing(open_batch(output, changed, parsed=parsed)) as journal:
        assert (list(journal.finished), parsed) == ([0, 1, 2], [])
    missing, result = complete(output, changed)
    assert missing == [3]
    texts = [(row["id"], row["text"]) for row in map(json.loads, result.splitlines())]
    assert texts == [(1, "So. When?"), (2, "So. How?"), (3, "So. Why?"), (4, "Later. Why not?")]


def test_changed_input_on_a_full_disk_is_an_error(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(_: str, connect: Callable[..., sqlite3.Connection] = sqlite3.connect) -> sqlite3.Connection:
        database = connect(":memory:")
        database.execute("PRAGMA max_page_count = 2")
        return database

    lines = output_paths(output).partial.read_bytes()
    with monkeypatch.context() as patched, pytest.raises(BatchError, match="database or disk is full") as caught:
        patched.setattr(sqlite3, "connect", connect)
        open_batch(output, f"{LINES}{LINES}")
    assert "TMPDIR" in caught.value.hint
    assert output_paths(output).partial.read_bytes() == lines
    assert complete(output)[0] == [4]


def test_restart_removes_the_checkpoint(output: Path) -> None:
    assert run(output, restart=True)
    assert not output_paths(output).checkpoint.exists()


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
def test_batch_killed_at_any_call_beside_a_checkpoint_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    """The calls include those between the sync of the lines and the block in the checkpoint."""
    written: list[int] = []

    def work(output: Path) -> None:
        written.clear()
        for positions in SESSIONS:
            with contextlib.closing(open_batch(output)) as journal:
                for position in positions:
                    write(journal, rows_in(LINES), (position,))
                    written.append(position)
        complete(output)

    for output in kill_at_each_call(tmp_path, monkeypatch, work, torn=torn):
        answered, result = complete(output)
        assert not set(answered) & set(written)
        assert len(answered) + len(written) in (6, 5, 1)  # of the last write, or with the row that `complete` answered
        assert [json.loads(line)["id"] for line in result.splitlines()] == [1, 2, 3, 4, 5, 6]


WRITER = """
import sys
from pathlib import Path
from batch_files import FINGERPRINT, answer, rows_in
from cerebrum_cli.batch.rows import result_rows
from cerebrum_cli.runs import partial
from cerebrum_cli.runs.journal import open_journal

partial.CHECKPOINT_LINES, partial.SYNC_INTERVAL_S = 1, 0.002
rows = rows_in("".join(f"Question {number}?\\n" for number in range(20_000)))
journal = open_journal(Path(sys.argv[1]), FINGERPRINT, result_rows(rows, "same"))
for position in range(len(rows)):
    if position not in journal.finished:
        journal.write(position, answer(rows[position]))
        print(position, flush=True)
journal.complete()
"""


@pytest.mark.slow
def test_batch_with_a_checkpoint_killed_repeatedly_repeats_nothing(tmp_path: Path) -> None:
    output, written = tmp_path / "out.jsonl", list[int]()
    checkpoint = output_paths(output).checkpoint
    for kills in range(4):
        environment = {**os.environ, "PYTHONPATH": str(Path(batch_files.__file__).parent)}
        command = [sys.executable, "-c", WRITER, str(output)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout
            for count, line in enumerate(process.stdout):
                written.append(int(line))
                if count >= 300 and kills < 3 and checkpoint.exists():
                    process.send_signal(signal.SIGKILL)
                    written += map(int, process.stdout)
        assert process.returncode == (-signal.SIGKILL if kills < 3 else 0)
        assert (kills == 3) != checkpoint.exists()
    assert len(set(written)) == len(written) >= 20_000 - 3  # of a last line, the process may have written no number
    ids = [json.loads(line)["id"] for line in output.read_bytes().splitlines()]
    assert ids == list(range(1, 20_001))
