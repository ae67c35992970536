"""Runs on disk: nothing finished is lost, no row is answered twice, and the output is whole, whatever happens."""

import contextlib
import csv
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import cases
import pytest
from disks import full_disk
from row_files import (
    FINGERPRINT,
    KEYS,
    ORDER,
    ROWS,
    TEXT,
    answer,
    finish,
    kill_at_each_call,
    lines_of,
    open_batch,
    output_object,
    rows_in,
    run,
    run_some,
    stored_lines,
    write_answers,
)

from cerebrum_cli.cli.row_commands import resumable
from cerebrum_cli.core.errors import BatchError, NoServerError, UsageError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.rows import file as row_file
from cerebrum_cli.rows.read import Input, InputOptions
from cerebrum_cli.rows.record import Record
from cerebrum_cli.rows.run import Run, StreamedRun, open_run, output_paths
from cerebrum_cli.rows.saved import read_saved


def batch_error(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(BatchError) as caught:
        action()
    assert caught.value.exit_code == 1
    return caught.value.message, caught.value.hint


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def objects(output: Path) -> list[dict[str, Any]]:
    """The rows of a complete result without their keys, which must differ."""
    rows = [json.loads(line) for line in output.read_text().split("\n")[:-1]]
    assert len({row.pop("key") for row in rows}) == len(rows)
    return rows


def expected(text: str = "So.") -> list[dict[str, Any]]:
    return [answer(row, text) for row in ROWS]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder / "out.jsonl"


@contextlib.contextmanager
def open_file(output: Path, rows: Input, **options: Any) -> Iterator[Run]:
    """The run of an input that was opened."""
    with contextlib.closing(open_run(output, Record({}), rows, rows.table(output), **options)) as run:
        yield run


FREE_SPACE = "free some disk space"
REPLACE = "use --restart to replace it, or choose another -o"
COMPLETE = {"out.jsonl", "out.jsonl.meta.json"}
IN_PROGRESS = {"out.jsonl.partial"}


def test_result_is_in_input_order_with_a_record_beside_it(output: Path) -> None:
    before = os.umask(0o027)
    try:
        assert run(output) == list(ORDER)
    finally:
        os.umask(before)
    assert objects(output) == expected() and "\u2028" not in output.read_text()
    assert names(output.parent) == COMPLETE
    assert {stat.S_IMODE(path.stat().st_mode) for path in output.parent.iterdir()} == {0o640}
    assert json.loads((output.parent / "out.jsonl.meta.json").read_bytes()) == {
        "version": 3,
        "fingerprint": {**FINGERPRINT, "stop": ["x"]},
        "notes": {},
        "rows": 4,
        "failed": 1,
        "truncated": 0,
        "undecided": 0,
        "empty": 0,
    }
    first, *_ = output.read_text().splitlines()
    assert tuple(json.loads(first)) == (*KEYS, "key")


def test_finished_rows_are_synced_within_a_second(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the file of a complete result before it replaces the output."""
    now, synced = [0.0], list[float]()
    monkeypatch.setattr(row_file, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(now[0]))
    results = open_batch(output)
    for now[0], position in zip((0.1, 0.5, 1.2, 1.3), ORDER, strict=True):
        write_answers(results, [position])
    assert [when for when in synced if when > 0.1] == [1.2]
    now[0] = 2.3
    results.sync()
    results.complete()
    assert synced.count(2.3) > 1


def test_rows_that_ask_the_same_are_told_apart(output: Path) -> None:
    """Each has an answer of its own, in whatever order they finish."""
    lines = "Why?\nHow?\nHow?\nHow?\n"
    with contextlib.closing(open_batch(output, text=lines)) as results:
        write_answers(results, [2])
    assert answer_missing(output, lines, "Second.") == [0, 1, 3]
    assert [text for *_, text in texts_by_row(output)] == [
        "Second. Why?",
        "Second. How?",
        "So. How?",
        "Second. How?",
    ]


def test_finished_rows_are_in_the_partial_file(output: Path) -> None:
    results = open_batch(output)
    for number, position in enumerate(ORDER, 1):
        write_answers(results, [position])
        assert len(stored_lines(output_paths(output).partial)) == number
        assert names(output.parent) == IN_PROGRESS
    for _ in range(2):
        results.complete()
        assert results.is_complete and set(results.finished) == {0, 1, 2, 3} and results.counts.failed == 1
    results.close()
    assert names(output.parent) == COMPLETE
    with contextlib.closing(open_batch(output)) as results:
        assert results.is_complete and results.counts.failed == 1


def test_output_symlink_stays_and_its_target_is_replaced(output: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(output)
    run(link)
    assert link.is_symlink() and objects(output) == expected()
    assert (names(output.parent), names(tmp_path)) == (COMPLETE, {"link", "results"})
    assert run(link) == []
    run(link, restart=True, text="Again.")
    assert objects(output) == expected("Again.")


def texts_by_row(output: Path) -> list[tuple[int, str, str]]:
    return [(row["id"], row["prompt"], row["text"]) for row in objects(output)]


def answer_missing(output: Path, lines: str, text: str, most: int = 99, **options: Any) -> list[int]:
    """Answer the missing rows of an input, up to a number of them; "Who?" fails. Return their positions."""
    return finish(open_batch(output, text=lines, **options), read(lines), text, most=most)


read = cache(rows_in)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
@pytest.mark.parametrize(("case", "runs", "expected"), cases.rows("continued_results"))
def test_answers_stay_when_the_input_changes(
    output: Path, name: str, case: str, runs: list[tuple[str, str, int, list[int]]], expected: list[list[Any]]
) -> None:
    """Each run has an input and answers some of its missing rows; until it has all, the earlier result stays."""
    output = output.with_name(name)
    for lines, text, most, positions in runs:
        before = output.exists() and output.read_bytes()
        assert answer_missing(output, lines, text, most) == positions, case
        if most < len(read(lines)):
            assert (output.exists() and output.read_bytes()) == before
    assert names(output.parent) - {f"{name}.removed.jsonl"} == {name, f"{name}.meta.json"}
    with output.open(newline="") as file:
        rows = csv.DictReader(file) if name == "out.csv" else map(json.loads, file)
        assert [[int(row["id"]), row["prompt"], row["text"] or ""] for row in rows] == expected


def test_id_of_its_own_stays_when_a_row_moves(tmp_path: Path) -> None:
    """Also one that is equal to the row's number."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = ['{"prompt": "Why?", "id": 1}', '{"prompt": "How?"}', '{"prompt": 5, "id": 3}']
    for blank in range(3):
        source.write_text("\n" * blank + "\n".join(lines))
        with InputOptions().open(source, None, output) as rows, open_file(output, rows) as results:
            for place, row in results.missing():
                error = row.error and asdict(row.error)
                results.write(place, output_object(row, text="So.", error=error))
            results.complete()
    assert [(row["id"], row.get("line")) for row in objects(output)] == [(1, None), (4, None), (3, 5)]


def test_changed_table_is_refused(output: Path) -> None:
    table = output.with_suffix(".csv")
    assert answer_missing(table, "Why?\nHow?\n", "First.") == [0, 1]
    text = table.read_text()
    for changed in (
        text.replace(",0000", ",0001"),
        text.replace("Why?", "Why\r?"),
        text.replace("First", "f"),
        "mine\n",
    ):
        table.write_bytes(changed.encode())
        assert batch_error(lambda: answer_missing(table, "Why?\nHow?\n", ""))[0].startswith(f"{table} was changed")


def test_table_with_a_long_answer_is_continued(output: Path) -> None:
    csv.field_size_limit(1 << 17)  # the default
    table = output.with_suffix(".csv")
    assert answer_missing(table, "Why?\n", "So. " * 50_000) == [0]
    assert answer_missing(table, "Why?\nHow?\n", "Second.") == [1]


def test_input_without_a_row_of_the_result_is_refused(output: Path) -> None:
    assert answer_missing(output, "Why?\nHow?\n", "First.", 1) == [0]
    problem = f"no answer in {output}.partial belongs to this input"
    assert batch_error(lambda: answer_missing(output, "When?\n", "Second.")) == (problem, REPLACE)
    assert answer_missing(output, "Why?\nHow?\n", "First.") == [1]
    message, _ = batch_error(lambda: answer_missing(output, "When?\n", "Second."))
    assert message == f"no answer in {output} belongs to this input"
    assert texts_by_row(output) == [(1, "Why?", "First. Why?"), (2, "How?", "First. How?")]
    assert names(output.parent) == COMPLETE


@pytest.mark.parametrize("is_complete", [False, True])
def test_failed_rows_are_retried_only_if_asked(output: Path, is_complete: bool) -> None:
    lines = "Who?\nWhy?\n" if is_complete else "Who?\nWhy?\nHow?\n"
    assert answer_missing(output, lines, "First.", 2) == [0, 1]
    assert answer_missing(output, lines, "Second.", 0) == []
    with contextlib.closing(open_batch(output, text=lines, retry_failed=True)) as results:
        assert 0 not in results.finished and results.counts.failed == 0
        [(place, row)] = [missing for missing in results.missing() if missing[1].prompt == "Who?"]
        results.write(place, output_object(row, text="Me.", finish_reason="stop"))
    with contextlib.closing(open_batch(output, text=lines)) as results:
        assert 0 in results.finished and results.counts.failed == 0
    saved = read_saved(output)
    assert saved and sorted(row["text"] for row, _ in saved.rows()) == ["First. Why?", "Me."]
    answer_missing(output, lines, "Third.")
    assert texts_by_row(output)[:2] == [(1, "Who?", "Me."), (2, "Why?", "First. Why?")]


@pytest.mark.parametrize(("changed", "difference"), cases.rows("changed_settings"))
def test_error_names_the_differing_settings(output: Path, changed: dict[str, Any], difference: str) -> None:
    template = "x" * 99 + "a"
    run_some(output, 0, template=template)
    assert batch_error(lambda: open_batch(output, **{"template": template, **changed})) == (
        f"{output}.partial was started with {difference}",
        "run the previous command to resume, or use --restart to start over",
    )
    assert names(output.parent) == IN_PROGRESS
    assert run(output, template=template) == [2, 3, 1]


def test_setting_with_its_default_does_not_stop_a_resume(output: Path) -> None:
    run_some(output, 0)
    changed: dict[str, Any] = {"top_k": Settings().top_k, "new switch": False, "new option": None}
    assert run(output, **changed) == [2, 3, 1]


def test_complete_result_is_replaced_only_with_restart(output: Path) -> None:
    run(output)
    output.write_bytes(b"mine")
    assert batch_error(lambda: open_batch(output))[0] == f"{output} was changed by another program"
    assert (output.read_bytes(), names(output.parent)) == (b"mine", COMPLETE)
    output.unlink()
    assert run(output, model="b") == list(ORDER)


def test_output_created_while_running_is_not_replaced(output: Path, tmp_path: Path) -> None:
    results = open_batch(output)
    write_answers(results, ORDER)
    output.write_bytes(b"mine")
    assert batch_error(results.complete) == (f"{output} was changed while the batch ran", "move it elsewhere")
    results.close()
    assert (output.read_bytes(), names(output.parent)) == (b"mine", {"out.jsonl"} | IN_PROGRESS)
    assert batch_error(lambda: open_batch(output))[0] == f"{output} already exists"
    output.rename(tmp_path / "mine")
    assert run(output) == []
    assert objects(output) == expected()


WRONG_FIELDS: list[dict[str, Any]] = [{"notes": []}, {"fingerprint": 5}]
WRONG_TYPES = [json.dumps({"version": 3, "fingerprint": {}, **wrong}).encode() for wrong in WRONG_FIELDS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("out.jsonl", b"mine", "out.jsonl already exists"),
        ("out.jsonl.partial", b"mine" * 1000, "out.jsonl.partial is damaged"),
        ("out.jsonl.partial", b'{"version": 1}\n', "out.jsonl.partial was written by another version of cerebrum"),
        ("out.jsonl.meta.json", b'{"version": 9}', "out.jsonl.meta.json was written by another version of cerebrum"),
        *(
            ("out.jsonl.meta.json", record, "out.jsonl.meta.json is damaged")
            for record in (b"", b"mine", b"[]", b"{}", b'{"version": 3}', b"\xff", *WRONG_TYPES)
        ),
    ],
)
def test_foreign_files_are_replaced_only_with_restart(output: Path, name: str, content: bytes, message: str) -> None:
    place = output.with_name(name)
    place.write_bytes(content)
    problem, hint = batch_error(lambda: open_batch(output))
    assert problem.startswith(str(output.with_name(message))) and "--restart" in hint
    assert (place.read_bytes(), names(output.parent)) == (content, {name})
    assert run(output, restart=True) == list(ORDER)


def test_result_has_a_single_writer(output: Path) -> None:
    with contextlib.closing(open_batch(output)) as results:
        write_answers(results, [0])
        for restart in (False, True):
            message, hint = batch_error(lambda restart=restart: open_batch(output, restart))  # type: ignore[misc]
            assert (message, hint) == ("another process is writing out.jsonl", "wait for it, or choose another -o")
    assert run(output) == [2, 3, 1]


@pytest.mark.usefixtures("no_locks")
def test_result_is_refused_where_the_file_system_has_no_locks(output: Path) -> None:
    assert batch_error(lambda: open_batch(output)) == (
        f"{output}.partial: this file system has no file locks",
        "use a directory on another disk",
    )


def test_output_that_is_a_pipe_or_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path, problem in ((pipe, " is not a regular file"), (loop, ": Too many levels of symbolic links")):
        with pytest.raises(UsageError) as caught:
            output_paths(path)
        assert (caught.value.message, bool(caught.value.hint)) == (f"{path}{problem}", True)
    assert names(tmp_path) == {"pipe", "loop"}


def test_unwritable_files_are_refused_on_open(output: Path) -> None:
    for place in (output_paths(output).partial, output_paths(output).meta):
        place.mkdir()
        assert batch_error(lambda: open_batch(output))[0] == f"{place}: Is a directory"
        place.rmdir()
    partial, victim = output_paths(output).partial, output.with_name("victim")
    os.mkfifo(partial)
    assert batch_error(lambda: open_batch(output))[0] == f"{partial}: not a regular file"
    partial.unlink()
    victim.write_text("precious")
    partial.symlink_to(victim)
    assert batch_error(lambda: open_batch(output))[0] == f"{partial}: Too many levels of symbolic links"
    assert victim.read_text() == "precious"


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


# What is done when the process is killed at each of its calls, after what, and which rows a second run may answer.

LONGER = f"What?\n{TEXT}When?\n"
KILLED = {  # how many rows are answered before, and the input of the process that is killed
    "begin": (0, TEXT),
    "resume": (2, TEXT),
    "longer input": (99, LONGER),
    "longer input of an unfinished batch": (2, LONGER),
}


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("what", KILLED)
def test_batch_killed_at_any_call_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, name: str, torn: bool
) -> None:
    before, lines = KILLED[what]
    rows = read(lines)
    lines_of(lines)

    def prepare(output: Path) -> None:
        if before:
            answer_missing(output, TEXT, "First.", before)

    def work(output: Path) -> None:
        answer_missing(output, lines, "Killed.")

    for output in kill_at_each_call(tmp_path, monkeypatch, work, prepare, name, torn):
        partial = output_paths(output).partial
        finished = {line for line in stored_lines(partial) if "Killed." in line}
        again = answer_missing(output, lines, "Last.")
        written = output.read_text()
        assert written.count("First. ") + written.count("Killed. ") + written.count("Last. ") == len(rows) - 1
        assert written.count("Killed. ") >= len(finished)
        assert written.count("Last. ") == sum(rows[position].prompt != "Who?" for position in again)
        assert names(output.parent) == {name, f"{name}.meta.json"}
        assert answer_missing(output, lines, "More.") == []


def test_restart_killed_at_any_call_leaves_old_or_new_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def restart(output: Path) -> list[int]:
        return run(output, restart=True, text="New.", model="b")

    outcomes = set()
    for output in kill_at_each_call(tmp_path, monkeypatch, restart, lambda output: run(output, text="Old.")):
        assert objects(output) in (expected("Old."), expected("New."))
        try:
            run(output, text="New.", model="b")
            outcomes.add("resumed")
        except BatchError as error:
            assert "use --restart to replace it" in error.hint
            assert run(output) == []  # not restarted yet: the old result is still complete
            assert objects(output) == expected("Old.")
            restart(output)
            outcomes.add("not restarted")
        assert (objects(output), names(output.parent)) == (expected("New."), COMPLETE)
    assert outcomes == {"resumed", "not restarted"}


def test_notes_survive_a_resume_and_the_completion(output: Path) -> None:
    with contextlib.closing(open_batch(output)) as results:
        write_answers(results, [0])
        results.note("servers", [{"kind": "a"}])
    for _ in range(2):
        with contextlib.closing(open_batch(output)) as results:
            assert results.notes == {"servers": [{"kind": "a"}]}
        run(output)


def test_error_says_what_is_saved_and_how_to_resume(output: Path) -> None:
    for restart, how in ((True, "with --restart"), (False, "to resume")):
        results = open_batch(output, restart)
        with full_disk(0), pytest.raises(BatchError) as failed, resumable(results, "rows"):
            write_answers(results, [0])
        assert failed.value.hint == f"{FREE_SPACE}; 0 of {len(ROWS)} rows done; run it again {how}"
    results = open_batch(output)
    with pytest.raises(NoServerError) as caught, resumable(results, "rows"):
        write_answers(results, [0])
        raise NoServerError("no server answers", "start one")
    saved = f"1 of {len(ROWS)} rows done, saved in {output}.partial"
    assert caught.value.hint == f"start one; {saved}; run it again to resume"


def test_full_disk_loses_no_finished_row(output: Path) -> None:
    """Without room for the record, for a row, and for the result."""
    with contextlib.closing(open_batch(output)) as results, full_disk(0):
        assert batch_error(lambda: write_answers(results, ORDER))[1] == FREE_SPACE
    assert names(output.parent) == set()
    run_some(output, 2)
    with contextlib.closing(open_batch(output)) as results:
        write_answers(results, [0])
        with full_disk(output_paths(output).partial.stat().st_size + 100):
            assert batch_error(lambda: write_answers(results, [1], "x" * 100_000))[1] == FREE_SPACE
        write_answers(results, [3])
    with contextlib.closing(open_batch(output)) as results:
        assert set(results.finished) == {0, 2, 3}
        write_answers(results, [1])
        with full_disk(200):
            message, hint = batch_error(results.complete)
    assert message.startswith(f"{output}") and hint == FREE_SPACE
    assert (names(output.parent), run(output), objects(output)) == (IN_PROGRESS, [], expected())


def test_failed_completion_can_be_retried(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = open_batch(output)
    write_answers(results, ORDER)
    for call in ("fsync", "write", "replace", "open"):
        with monkeypatch.context() as patched:

            def failing(*_: Any, **options: Any) -> int:
                raise OSError(5, "Input/output error")

            patched.setattr(os, call, failing)
            message, hint = batch_error(results.complete)
            assert message.startswith(f"{output}") and message.endswith(": Input/output error")
            assert hint == "check the disk"
        assert not output.exists()
        assert len(stored_lines(output_paths(output).partial)) == len(ROWS)
    results.complete()
    assert (objects(output), names(output.parent)) == (expected(), COMPLETE)


def test_streamed_run_writes_in_input_order() -> None:
    """When it is closed, it writes the finished rows, also those behind gaps."""
    for order, counts, ids in ((ORDER, (0, 1, 1, 4), [0, 1, 2, 3]), ((3, 1), (0, 0), [1, 3])):
        written: list[str] = []
        streamed = StreamedRun(lines_of(TEXT), written.append)
        for position, count in zip(order, counts, strict=True):
            write_answers(streamed, [position])
            assert len(written) == count
        for _ in range(2):
            streamed.close()
            assert [json.loads(line)["id"] for line in written] == [ROWS[position].id for position in ids]
        assert (streamed.counts.failed, sorted(streamed.finished)) == (1, ids)
        if len(order) == len(ROWS):
            streamed.complete()
            assert list(map(json.loads, written)) == expected()


def test_streamed_run_stops_after_a_broken_pipe() -> None:
    tries: list[str] = []

    def write(text: str) -> None:
        tries.append(text)
        raise BrokenPipeError

    streamed = StreamedRun(lines_of(TEXT), write)
    write_answers(streamed, [1])
    with pytest.raises(BrokenPipeError):
        write_answers(streamed, [0])
    streamed.close()
    assert len(tries) == 1


def test_later_answer_to_a_row_is_the_one_that_is_stored(output: Path) -> None:
    with contextlib.closing(open_batch(output)) as results:
        missing = [*results.missing()]
        for text in ("First.", "Second."):
            for place, row in missing:
                results.write(place, answer(row, text))
        results.complete()
    assert objects(output) == expected("Second.")
