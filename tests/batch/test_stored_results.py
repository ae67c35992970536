"""Stored results: rows are on disk once they are committed, and the output is whole, whatever ends the process."""

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from batch_files import (
    FINGERPRINT,
    KEYS,
    ORDER,
    ROWS,
    UnsyncedConnection,
    answer,
    complete_result,
    finish,
    grow,
    kill_at_each_call,
    open_batch,
    open_growing,
    output_object,
    result_rows,
    rows_in,
    run,
    run_some,
    saved_objects,
)
from disks import full_disk
from waiting import wait_until

from cerebrum_cli.cli.row_commands import resumable
from cerebrum_cli.core.errors import BatchError, NoServerError, UsageError
from cerebrum_cli.core.row_fields import RowError
from cerebrum_cli.results.results import open_results, output_paths
from cerebrum_cli.results.rows import ResultRows, Results, StreamedResults


def batch_error(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(BatchError) as caught:
        action()
    assert caught.value.exit_code == 1
    return caught.value.message, caught.value.hint


def write(results: Results, positions: Iterable[int]) -> None:
    for position in positions:
        results.write_row(position, answer(ROWS[position]))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder / "out.jsonl"


FREE_SPACE = "free some disk space, then run it again without --restart to resume"
COMPLETE = {"out.jsonl", "out.jsonl.meta.json"}
IN_PROGRESS = {"out.jsonl.partial", "out.jsonl.meta.json"}


def test_result_is_in_input_order_with_a_record_beside_it(output: Path) -> None:
    before = os.umask(0o027)
    try:
        assert run(output) == list(ORDER)
    finally:
        os.umask(before)
    assert output.read_bytes() == complete_result()
    assert names(output.parent) == COMPLETE
    assert {stat.S_IMODE(path.stat().st_mode) for path in output.parent.iterdir()} == {0o640}
    assert json.loads((output.parent / "out.jsonl.meta.json").read_bytes()) == {
        "version": 1,
        "fingerprint": {**FINGERPRINT, "stop": ["x"]},
        "rows": 4,
        "input": None,
        "replaces": None,
        "failed": 1,
        "truncated": 0,
        "undecided": 0,
        "empty": 0,
        "result": hashlib.sha256(complete_result()).hexdigest(),
    }


def test_finished_rows_are_on_disk_within_a_second(output: Path) -> None:
    results = open_batch(output)
    assert names(output.parent) == IN_PROGRESS
    assert json.loads(output_paths(output).meta.read_bytes())["result"] is None
    for position in ORDER:
        results.write_row(position, answer(ROWS[position]))
        wait_until(lambda position=position: answer(ROWS[position]) in saved_objects(output))  # type: ignore[misc]
        assert position in results.finished
    assert saved_objects(output) == list(map(answer, ROWS))
    assert not output.exists()
    assert not results.is_complete
    for _ in range(2):
        results.complete()
        assert results.is_complete
        assert set(results.finished) == {0, 1, 2, 3}
        assert results.counts.failed == 1
    results.close()
    assert names(output.parent) == COMPLETE


def test_output_symlink_stays_and_its_target_is_replaced(output: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(output)
    run(link)
    assert link.is_symlink() and output.read_bytes() == complete_result()
    assert (names(output.parent), names(tmp_path)) == (COMPLETE, {"link", "results"})
    assert run(link) == []
    run(link, restart=True, text="Again.")
    assert output.read_bytes() == complete_result("Again.")


@pytest.mark.slow
def test_results_take_few_bytes_a_row(output: Path) -> None:
    """So does one whose rows have moved."""
    described = result_rows(ROWS)

    def rows(first: int) -> ResultRows:
        fields = lambda position: {"prompt": str(position - first), "line": position}  # noqa: E731
        return replace(described, size=20_000, fields=fields, sha256=str(first))

    for first, most in ((0, 15), (1, 26)):
        tracemalloc.start()
        try:
            with contextlib.closing(open_results(output, FINGERPRINT, rows(first))) as results:
                for position in range(0, 20_000, 100):
                    if position not in results.finished:
                        results.write_row(position, {**answer(ROWS[0], "x" * 1000), "prompt": str(position - first)})
                    if position % 2000 == 0:
                        next(results.objects())
                assert len(results.finished) == 200 * (1 + first)
                _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak / 20_000 < most


def test_later_answer_to_a_row_is_the_one_that_is_stored(output: Path) -> None:
    rows = rows_in("".join(f"question {number}\n" for number in range(200)))
    with contextlib.closing(open_batch(output, rows=rows)) as results:
        for values in ({"error": asdict(RowError("prompt_too_long", "it is"))}, {"text": "So."}):
            for position, row in enumerate(rows):
                results.write_row(position, output_object(row, **values))
        results.complete()
    assert [text for _, _, text in texts_by_row(output)] == ["So."] * len(rows)


def test_identical_rows_are_distinguished_by_position(output: Path) -> None:
    lines = [{"prompt": prompt, "id": id} for prompt, id in (("a", 1), ("a", 1), ("b", 1), ("a", "1"), ("a", 1))]
    rows = rows_in("\n".join(map(json.dumps, lines)), "jsonl")
    with contextlib.closing(open_batch(output, rows=rows)) as results:
        for position in (1, 3):
            results.write_row(position, {**answer(rows[position]), "text": f'{position}, "row": 0}}'})
    with contextlib.closing(open_batch(output, rows=rows)) as results:
        assert set(results.finished) == {1, 3}
        for position in (4, 2, 0):
            results.write_row(position, {**answer(rows[position]), "text": str(position)})
        results.complete()
    written = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [row["text"] for row in written] == ["0", '1, "row": 0}', "2", '3, "row": 0}', "4"]
    assert all(tuple(row) == KEYS for row in written)


@pytest.mark.slow
def test_store_of_a_process_killed_in_a_commit_is_as_before_it(output: Path) -> None:
    run_some(output, 0)
    partial = output_paths(output).partial
    script = f"""
import os, signal, sqlite3
database = sqlite3.connect({str(partial)!r}, isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN IMMEDIATE")
for position in range(1, 1000):
    database.execute("INSERT OR REPLACE INTO rows VALUES (?, 1, ?)", (position, "x" * 1000))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert names(output.parent) == {*IN_PROGRESS, "out.jsonl.partial-journal"}
    with contextlib.closing(open_batch(output)) as results:
        assert set(results.finished) == {0}
        assert names(output.parent) == IN_PROGRESS
    assert run(output) == [2, 3, 1]


def texts_by_row(output: Path) -> list[tuple[int, str, str]]:
    return [(row["id"], row["prompt"], row["text"]) for row in map(json.loads, output.read_text().splitlines())]


def answer_missing(output: Path, lines: str, text: str, most: int = 99) -> list[int]:
    """Answer the missing rows of an input, up to a number of them; "Who?" fails. Return their positions."""
    rows = rows_in(lines)
    return finish(open_batch(output, rows=rows, sha256=lines), rows, text, most=most)


def test_changed_input_keeps_the_answers_of_its_rows(output: Path) -> None:
    assert answer_missing(output, "Why?\nWhere?\nWhy?\nHow?\n", "First.", 3) == [0, 1, 2]
    assert answer_missing(output, "Why?\nWhere?\nWhy?\nHow?\nWhen?\n", "Second.") == [3, 4]
    complete = output.read_bytes()
    changed = "How?\nWhen not?\n\nWhy?\nWhy?\nWhy?\n"
    assert answer_missing(output, changed, "Third.", 1) == [1]
    assert output.read_bytes() == complete
    assert answer_missing(output, changed, "Third.") == [4]
    assert texts_by_row(output) == [
        (1, "How?", "Second. How?"),
        (2, "When not?", "Third. When not?"),
        (4, "Why?", "First. Why?"),
        (5, "Why?", "First. Why?"),
        (6, "Why?", "Third. Why?"),
    ]
    assert answer_missing(output, changed, "Fourth.") == []
    assert (answer_missing(output, "Why?\n", "Fifth."), texts_by_row(output)) == ([], [(1, "Why?", "First. Why?")])


def test_input_without_a_row_of_the_result_is_refused(output: Path) -> None:
    assert answer_missing(output, "Why?\nHow?\n", "First.", 1) == [0]
    assert batch_error(lambda: answer_missing(output, "When?\n", "Second.")) == (
        f"none of the answers in {output}.partial is for this input",
        "use --restart to replace it, or choose another -o",
    )
    assert answer_missing(output, "Why?\nHow?\n", "First.") == [1]
    message, _ = batch_error(lambda: answer_missing(output, "When?\n", "Second."))
    assert message == f"none of the answers in {output} is for this input"
    assert texts_by_row(output) == [(1, "Why?", "First. Why?"), (2, "How?", "First. How?")]
    assert names(output.parent) == COMPLETE


def test_answers_to_rows_that_are_gone_stay_until_the_result_is_complete(output: Path) -> None:
    assert answer_missing(output, "Who?\nWhy?\n", "First.", 2) == [0, 1]
    assert answer_missing(output, "Who?\nWhen?\n", "Second.", 0) == []
    assert answer_missing(output, "Why?\nWho?\n", "Third.") == []


def test_answer_of_a_retried_row_stays_with_it_when_it_moves(output: Path) -> None:
    rows = rows_in("Who?\nWhy?\n")
    finish(open_batch(output, rows=rows), rows, "", most=1)
    for moved in ("How?\nWho?\nWhy?\n", "Who?\nWhy?\n", "Why?\nWho?\n"):
        rows = rows_in(moved)
        position = next(at for at, row in enumerate(rows) if row.prompt == "Who?")
        results = open_results(output, FINGERPRINT, result_rows(rows, moved), retry_failed=True)
        with contextlib.closing(results):
            if moved.startswith("How?"):
                assert not results.finished
                results.write_row(position, {**answer(rows[position]), "text": "Me.", "error": None})
            assert (list(results.finished), results.counts.failed) == ([position], 0)


def test_rows_are_told_apart_by_what_else_they_ask(output: Path) -> None:
    question = {"role": "user", "content": "a"}
    earlier = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    asked: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": "a", "system": ""},
        *({"prompt": "a", "temperature": value} for value in (0.5, "high", "higher")),
        {"prompt": "a", "temperature": 0.5, "max_tokens": 3},
        {"model": "m", "messages": [question]},
        {"messages": [*earlier, question]},
        *(
            {"messages": [earlier[0], called, {"role": "tool", "content": text}, *earlier[1:], question]}
            for text in "de"
        ),
    ]
    rows = rows_in("\n".join(map(json.dumps, asked)), "jsonl")
    requests = [row.request_digest for row in rows]
    assert (requests[0], len(set(requests))) == (None, len(rows))
    assert {len(request) for request in requests if request} == {12}
    with contextlib.closing(open_batch(output, rows=rows)) as results:
        for position, row in enumerate(rows):
            results.write_row(position, {**answer(row), "text": str(position)})
    with contextlib.closing(open_batch(output, rows=rows[::-1], sha256="new")) as results:
        results.complete()
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["text"], row.get("request")) for row in written] == list(
        zip("9876543210", requests[::-1], strict=True)
    )


def test_change_of_the_input_killed_at_any_call_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = "Why?\nWhere?\n", "How?\nWhere?\nWhy?\n"
    for output in kill_at_each_call(
        tmp_path,
        monkeypatch,
        lambda output: answer_missing(output, after, "Second."),
        lambda output: answer_missing(output, before, "First."),
    ):
        assert answer_missing(output, after, "Third.") in ([0], [])
        assert [text for _, _, text in texts_by_row(output)][1:] == ["First. Where?", "First. Why?"]


def test_changed_input_on_a_full_disk_is_an_error(output: Path) -> None:
    answer_missing(output, "Why?\nHow?\n", "First.", 1)
    partial = output_paths(output).partial
    rows = saved_objects(output)
    with full_disk(partial.stat().st_size):
        _, hint = batch_error(lambda: answer_missing(output, "Why?\nWhen?\n", "Second."))
    assert hint == "free some disk space, then run it again without --restart to resume"
    assert saved_objects(output) == rows
    assert answer_missing(output, "Why?\nWhen?\n", "Third.") == [1]


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"temperature": 0.8}, "another temperature (0.7, now 0.8)"),
        ({"system": "Be brief."}, "another system (none, now Be brief.)"),
        ({"template": "x" * 99 + "b"}, "another template"),  # equal when truncated
        ({"grammar": "0" * 64}, f"another grammar (none, now {'0' * 39}…)"),
        ({"model": "b", "stop": ("x", "y")}, 'another model (a, now b) and another stop (["x"], now ["x", "y"])'),
        (
            {"model": "b", "temperature": 1, "stop": None, "system": "", "votes": 3},
            'another model (a, now b), another temperature (0.7, now 1), another stop (["x"], now none) and 2 more',
        ),
    ],
)
def test_error_names_the_differing_settings(output: Path, changed: dict[str, Any], difference: str) -> None:
    template = "x" * 99 + "a"
    run_some(output, 0, template=template)
    assert batch_error(lambda: open_batch(output, **{"template": template, **changed})) == (
        f"{output}.partial was started with {difference}",
        "run the previous command to resume, or use --restart to start over",
    )
    assert names(output.parent) == IN_PROGRESS
    assert run(output, template=template) == [2, 3, 1]


def test_complete_result_is_replaced_only_with_restart(output: Path) -> None:
    replace = "use --restart to replace it, or choose another -o"
    run(output)
    made = f"{output} was made with another model (a, now b)"
    assert batch_error(lambda: open_batch(output, model="b")) == (made, replace)
    output.write_bytes(b"mine")
    assert batch_error(lambda: open_batch(output, model="b")) == (f"{output} already exists", replace)
    assert batch_error(lambda: open_batch(output))[0] == f"{output} was changed by another program"
    assert (output.read_bytes(), names(output.parent)) == (b"mine", COMPLETE)
    output.unlink()
    assert run(output, model="b") == list(ORDER)


def test_output_created_while_running_is_not_replaced(output: Path, tmp_path: Path) -> None:
    results = open_batch(output)
    write(results, ORDER)
    output.write_bytes(b"mine")
    assert batch_error(results.complete) == (
        f"{output} was changed while the batch ran",
        "move it elsewhere, then run it again without --restart to write the result",
    )
    results.close()
    assert (output.read_bytes(), names(output.parent)) == (b"mine", COMPLETE | IN_PROGRESS)
    assert batch_error(lambda: open_batch(output))[0] == f"{output} was changed by another program"
    output.rename(tmp_path / "mine")
    assert run(output) == []
    assert output.read_bytes() == complete_result()


WRONG_FIELDS: list[dict[str, Any]] = [
    {"rows": "1"},
    {"failed": [5]},
    {"result": 5},
    {"extent": {"samples": "x"}},
    {"notes": []},
    {"other": 1},
]
WRONG_TYPES = [json.dumps({"version": 1, "fingerprint": {}, "rows": 1, **wrong}).encode() for wrong in WRONG_FIELDS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("out.jsonl", b"mine", "out.jsonl already exists"),
        ("out.jsonl.partial", b"mine" * 1000, "out.jsonl.partial is damaged: file is not a database"),
        ("out.jsonl.meta.json", b'{"version": 2}', "out.jsonl.meta.json was written by another version of cerebrum"),
        *(
            ("out.jsonl.meta.json", record, "out.jsonl.meta.json is not a batch record")
            for record in (b"", b"mine", b"[]", b"{}", b'{"version": 1}', b"\xff", *WRONG_TYPES)
        ),
    ],
)
def test_foreign_files_are_replaced_only_with_restart(output: Path, name: str, content: bytes, message: str) -> None:
    place = output.with_name(name)
    place.write_bytes(content)
    problem, hint = batch_error(lambda: open_batch(output))
    assert (problem, "--restart" in hint) == (str(output.with_name(message)), True)
    assert (place.read_bytes(), names(output.parent)) == (content, {name})
    assert run(output, restart=True) == list(ORDER)


def test_result_has_a_single_writer(output: Path) -> None:
    with contextlib.closing(open_batch(output)) as results:
        for restart in (False, True):
            message, hint = batch_error(lambda restart=restart: open_batch(output, restart))  # type: ignore[misc]
            assert (message, hint) == ("another process is writing out.jsonl", "wait for it, or choose another -o")
        results.write_row(0, answer(ROWS[0]))
    assert run(output) == [2, 3, 1]


@pytest.mark.usefixtures("no_locks")
def test_result_is_refused_where_the_file_system_has_no_locks(output: Path) -> None:
    assert batch_error(lambda: open_batch(output)) == (
        f"{output}.partial: this file system has no file locks",
        f"use a directory on another disk{FREE_SPACE.removeprefix('free some disk space')}",
    )


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE rows SET flags = x'ff'",
        "UPDATE rows SET flags = 0, object = '{}'",
        'UPDATE rows SET flags = 0, object = \'{"tokens": ["text"]}\'',
        "UPDATE metadata SET value = x'ff'",
    ],
)
def test_rows_of_another_type_are_damage(output: Path, damage: str) -> None:
    with contextlib.closing(open_batch(output)) as results:
        write(results, [0])
    partial = output_paths(output).partial
    with contextlib.closing(sqlite3.connect(partial)) as database:
        database.execute(damage)
        database.commit()
    message, hint = batch_error(lambda: open_batch(output))
    assert message.startswith(f"{partial} is damaged: ") and "--restart" in hint
    assert run(output, restart=True) == list(ORDER)


DAMAGED_VALUES: tuple[Any, ...] = (None, 5, -1.5, True, "x", "\ud800", [], [1, [2]], {}, {"type": 5}, 10**30)
DAMAGED_OBJECTS = (None, 5, b"\xff", b"", "x", "null", "[]", '"x"', "{}", "[" * 3000)
DAMAGED_TABLES = (
    "DROP TABLE rows",
    "DELETE FROM metadata",
    "ALTER TABLE rows DROP COLUMN flags",
    "ALTER TABLE rows RENAME COLUMN object TO other",
    "UPDATE rows SET flags = 'x'",
    "UPDATE rows SET position = position + 100",
)


def damage_store(random: Random, partial: Path) -> None:
    """Corrupt bytes of a store, one of its tables, or its first row."""
    if random.random() < 0.2:
        data = bytearray(partial.read_bytes())
        for _ in range(random.randint(1, 20)):
            data[random.randrange(len(data))] = random.randrange(256)
        partial.write_bytes(data)
        return
    with contextlib.closing(sqlite3.connect(partial)) as database, database:
        if random.random() < 0.2:
            database.execute(random.choice(DAMAGED_TABLES))
            return
        object = random.choice(DAMAGED_OBJECTS)
        if random.random() < 0.8:
            [text] = database.execute("SELECT object FROM rows WHERE position = 0").fetchone()
            values = json.loads(text)
            key = random.choice(list(values))
            values[key] = random.choice(DAMAGED_VALUES)
            if random.random() < 0.2:
                del values[key]
            object = json.dumps(values)
        database.execute("UPDATE rows SET object = ? WHERE position = 0", (object,))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_randomly_damaged_store_is_read_or_refused(output: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=UnsyncedConnection))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    rows = tuple(replace(row, input={"prompt": row.prompt, "b": 1}) for row in ROWS)
    refused = 0
    for seed in range(50):
        random = Random(f"{kind} {seed}")
        paths = output_paths(output.with_name(f"{seed}.{kind}"))

        def answer_rows(sha256: str, most: int, output: Path = paths.output) -> None:
            described = result_rows(rows, sha256, output.name)
            finish(open_results(output, FINGERPRINT, described), rows, "So.", most=most)

        answer_rows("1", 2)
        damage_store(random, paths.partial)
        try:
            answer_rows(random.choice("12"), 99)
        except BatchError as error:
            refused += 1
            assert error.message.startswith(f"{paths.partial} is damaged: ") and error.message.isprintable()
            assert "--restart" in error.hint and paths.partial.exists() and not paths.output.exists()
    assert refused > 5


def test_unusable_output_path_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = {
        tmp_path: f"{tmp_path} is a directory",
        Path(): ". is a directory",
        tmp_path / "nowhere" / "out": f"directory {tmp_path / 'nowhere'} does not exist",
        tmp_path / "file" / "out": f"{tmp_path / 'file' / 'out'}: Not a directory",
        tmp_path / "pipe": f"{tmp_path / 'pipe'} is not a regular file",
        Path("/dev/null"): "/dev/null is not a regular file",
        tmp_path / "loop": f"{tmp_path / 'loop'}: Too many levels of symbolic links",
    }
    for path, message in cases.items():
        with pytest.raises(UsageError) as caught:
            open_batch(path)
        assert (caught.value.message, bool(caught.value.hint)) == (message, True)
    assert names(tmp_path) == {"file", "pipe", "loop"}


def test_unwritable_files_are_refused_on_open(output: Path) -> None:
    for place in (output_paths(output).partial, output_paths(output).meta):
        place.mkdir()
        assert batch_error(lambda: open_batch(output))[0] == f"{place}: Is a directory"
        place.rmdir()


def test_output_must_not_overwrite_the_input(output: Path, tmp_path: Path) -> None:
    link = tmp_path / "in.txt"
    for name in ("out.jsonl", "out.jsonl.partial", "out.jsonl.meta.json"):
        source = output.with_name(name)
        source.write_bytes(b"a")
        link.symlink_to(source)
        with pytest.raises(UsageError, match=r"the output would overwrite the input"):
            output_paths(output, link)
        link.unlink()
        source.unlink()
    link.write_bytes(b"a")
    assert output_paths(output, link).output == output
    assert output_paths(output, Path("-")).output == output


@pytest.mark.parametrize("torn", [False, True])
def test_batch_killed_at_any_call_resumes_without_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    finished: list[int] = []

    def complete(output: Path) -> None:
        finished.clear()
        with contextlib.closing(open_batch(output)) as results:
            for position in ORDER:
                results.write_row(position, answer(ROWS[position], "First."))
                next(results.objects())  # which stores them
                finished.append(position)
            results.complete()

    for output in kill_at_each_call(tmp_path, monkeypatch, complete, torn=torn):
        assert not output.exists() or output.read_bytes() == complete_result("First.")
        again = run(output, text="Second.")
        assert not set(again) & set(finished)
        assert len(again) + len(finished) in (len(ROWS), len(ROWS) - 1)  # the last write may not have returned
        texts = [json.loads(line)["text"] for line in output.read_bytes().splitlines()]
        for position, text in enumerate(texts):
            word = "Second." if position in again else "First."
            assert text is None or text == f"{word} {ROWS[position].prompt}"
        assert (len(texts), names(output.parent)) == (len(ROWS), COMPLETE)
        assert run(output) == []


@pytest.mark.slow
def test_restart_killed_at_any_call_leaves_old_or_new_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def restart(output: Path) -> list[int]:
        return run(output, restart=True, text="New.", model="b")

    outcomes = set()
    for output in kill_at_each_call(tmp_path, monkeypatch, restart, lambda output: run(output, text="Old.")):
        assert output.read_bytes() in (complete_result("Old."), complete_result("New."))
        try:
            run(output, text="New.", model="b")
            outcomes.add("resumed")
        except BatchError as error:
            assert "use --restart to replace it" in error.hint
            assert output.read_bytes() == complete_result("Old.")
            assert run(output) == []  # not restarted yet: the old result is still complete
            restart(output)
            outcomes.add("not restarted")
        assert (output.read_bytes(), names(output.parent)) == (complete_result("New."), COMPLETE)
    assert outcomes == {"resumed", "not restarted"}


def test_restart_killed_at_any_call_never_mixes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for output in kill_at_each_call(
        tmp_path,
        monkeypatch,
        lambda output: run_some(output, restart=True, model="b"),
        lambda output: run_some(output, 0, 1, 2, text="Old."),
    ):
        try:
            run(output, text="New.", model="b")
        except BatchError:
            assert run(output, text="Old.") == [3]
        else:
            assert output.read_bytes() == complete_result("New.")


def test_extent_of_a_result_may_grow_but_not_shrink(output: Path) -> None:
    assert finish(open_growing(output, 2), ROWS[:2], "First.", most=1) == [0]
    assert grow(output, 2, "Second.") == [1]  # to an interrupted result
    assert grow(output, 4, "Third.") == [2, 3]  # to a complete one
    texts = [text for _, _, text in texts_by_row(output)]
    assert texts[:3] == ["First. Why?", "Second. How?", f"Third. {ROWS[2].prompt}"]
    assert grow(output, 4) == []
    before = output.read_bytes()
    problem, hint = batch_error(lambda: open_growing(output, 2))
    assert (problem, "-o" in hint) == (f"{output} already has more questions (4, now 2)", True)
    assert output.read_bytes() == before


@pytest.mark.slow
def test_growth_killed_at_any_call_loses_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for output in kill_at_each_call(
        tmp_path, monkeypatch, lambda output: grow(output, 3, "Second."), lambda output: grow(output, 2, "First.")
    ):
        assert set(grow(output, 3, "Third.")) <= {2}
        assert [text for _, _, text in texts_by_row(output)][:-1] == ["First. Why?", "First. How?"]


def test_notes_survive_a_resume_and_the_completion(output: Path) -> None:
    with contextlib.closing(open_growing(output, 2)) as results:
        results.write_row(0, answer(ROWS[0]))
        results.write_notes({"seconds": 1.5})
    for finished in (1, 3):
        with contextlib.closing(open_growing(output, 3)) as results:
            assert results.notes == {"seconds": 1.5}
            assert [object["id"] for object in results.objects()] == [row.id for row in ROWS[:finished]]
        grow(output, 3)


def test_error_of_a_server_names_the_file_with_the_finished_rows(output: Path) -> None:
    results = open_batch(output)
    with pytest.raises(NoServerError) as caught, resumable(results, "rows", restart=False):
        results.write_row(0, answer(ROWS[0]))
        raise NoServerError("no server answers", "start one")
    saved = f"1 of {len(ROWS)} rows done, saved in {output}.partial"
    assert caught.value.hint == f"start one; {saved}; run it again to resume"


def test_full_disk_without_room_for_the_record_leaves_no_files(output: Path) -> None:
    with full_disk(0):
        _, hint = batch_error(lambda: run(output))
    assert hint == FREE_SPACE
    output.with_name("out.jsonl.partial").unlink(missing_ok=True)
    assert run(output) == list(ORDER)


def test_full_disk_keeps_committed_rows_and_resumes(output: Path) -> None:
    run_some(output, 2)
    size = output_paths(output).partial.stat().st_size
    results = open_batch(output)
    results.write_row(0, answer(ROWS[0]))
    list(results.objects())
    with full_disk(size):
        results.write_row(1, answer(ROWS[1], "x" * 100_000))
        assert batch_error(lambda: next(results.objects()))[1] == FREE_SPACE
        assert batch_error(results.close)[1] == FREE_SPACE
    assert names(output.parent) == IN_PROGRESS
    assert run(output) == [3, 1]
    assert output.read_bytes() == complete_result()


def test_rows_wait_for_room_on_a_full_disk(output: Path) -> None:
    results = open_batch(output)
    size = output_paths(output).partial.stat().st_size
    with full_disk(size):
        results.write_row(1, answer(ROWS[1], "x" * 100_000))
        wait_until(lambda: writes_fail(results))
    for position in (0, 2, 3):
        results.write_row(position, answer(ROWS[position]))
    results.complete()
    assert json.loads(output.read_bytes().splitlines()[1]) == answer(ROWS[1], "x" * 100_000)


def writes_fail(results: Results) -> bool:
    """Whether the error of a commit is raised by the next write."""
    try:
        results.write_row(0, answer(ROWS[0]))
    except BatchError as error:
        assert error.hint == FREE_SPACE
        return True
    return False


def test_full_disk_without_room_for_the_result_keeps_all_rows(output: Path) -> None:
    run_some(output, *ORDER)
    with full_disk(len(complete_result()) - 1):
        message, hint = batch_error(lambda: run(output))
    assert message.startswith(f"{output}")
    assert hint == f"{FREE_SPACE}; all rows are saved in {output}.partial"
    assert names(output.parent) == IN_PROGRESS
    assert run(output) == []
    assert output.read_bytes() == complete_result()


@pytest.mark.slow
def test_rows_are_committed_together(output: Path) -> None:
    rows = rows_in("".join(f"Question {number}?\n" for number in range(300)))
    with contextlib.closing(open_batch(output, rows=rows)) as results:
        for position in range(200):
            results.write_row(position, answer(rows[position]))
        wait_until(lambda: len(saved_objects(output)) == 200)
        results.write_row(200, answer(rows[200]))
    assert len(saved_objects(output)) == 201
    assert not [thread for thread in threading.enumerate() if thread.name == "commit"]


def test_failed_completion_can_be_retried(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = open_batch(output)
    write(results, ORDER)
    for call in ("fsync", "write", "replace", "open"):
        with monkeypatch.context() as patched:

            def failing(*_: Any, **options: Any) -> int:
                raise OSError(5, "Input/output error")

            patched.setattr(os, call, failing)
            message, hint = batch_error(results.complete)
            assert message.startswith(f"{output}") and message.endswith(": Input/output error")
            assert hint.startswith("check the disk, then run it again without --restart to resume")
            assert hint.endswith(f"; all rows are saved in {output_paths(output).partial}")
        assert not output.exists()
        assert saved_objects(output) == list(map(answer, ROWS))
    results.complete()
    assert (output.read_bytes(), names(output.parent)) == (complete_result(), COMPLETE)


def test_streamed_result_writes_in_input_order() -> None:
    """When it is closed, it writes the finished rows, also those behind gaps."""
    for order, counts, ids in ((ORDER, (0, 1, 1, 4), [0, 1, 2, 3]), ((3, 1), (0, 0), [1, 3])):
        written: list[str] = []
        streamed = StreamedResults(result_rows(ROWS), written.append)
        for position, count in zip(order, counts, strict=True):
            streamed.write_row(position, answer(ROWS[position]))
            assert len(written) == count
        for _ in range(2):
            streamed.close()
            assert [json.loads(line)["id"] for line in written] == [ROWS[position].id for position in ids]
        assert (streamed.counts.failed, sorted(streamed.finished)) == (1, ids)
        if len(order) == len(ROWS):
            streamed.complete()
            assert "".join(written).encode() == complete_result()


def test_streamed_result_stops_after_a_broken_pipe() -> None:
    tries: list[str] = []

    def write(text: str) -> None:
        tries.append(text)
        raise BrokenPipeError

    streamed = StreamedResults(result_rows(ROWS), write)
    streamed.write_row(1, answer(ROWS[1]))
    with pytest.raises(BrokenPipeError):
        streamed.write_row(0, answer(ROWS[0]))
    streamed.close()
    assert len(tries) == 1
