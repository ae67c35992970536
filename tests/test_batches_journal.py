"""A batch's answers are on disk when they are written, and its result appears whole, whatever ends the process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.batches import files
from cerebrum_cli.batches.files import output_paths
from cerebrum_cli.batches.journal import Journal, open_journal
from cerebrum_cli.batches.readers import read_rows
from cerebrum_cli.batches.result import Result, StreamedResult
from cerebrum_cli.batches.rows import OUTPUT_KEYS, Row, RowError, failed_object
from cerebrum_cli.core.errors import BatchError, UsageError

ROOT = Path(__file__).parents[1]
MADE_BY: dict[str, Any] = {"model": "a", "temperature": 0.7, "stop": ("x",), "system": None}
ROWS = read_rows("Why?\nHow?\n\nWhé\u2028n?\nWho?\n".encode(), "txt")
ORDER = (2, 0, 3, 1)  # rows finish as they like


def answer(row: Row, text: str = "So.") -> dict[str, Any]:
    """Return the object of a row; a question beginning with W-h-o fails."""
    if row.prompt == "Who?":
        return failed_object(row, RowError("prompt_too_long", "it is"))
    return {**failed_object(row, RowError("", "")), "text": f"{text} {row.prompt}", "seed": 1, "error": None}


def result(text: str = "So.") -> bytes:
    """Return what the result of all rows is."""
    lines = [json.dumps(answer(row, text), ensure_ascii=False).replace("\u2028", "\\u2028") for row in ROWS]
    return "".join(f"{line}\n" for line in lines).encode()


def begin(output: Path, restart: bool = False, rows: tuple[Row, ...] = ROWS, **changed: Any) -> Journal:
    return open_journal(output, {**MADE_BY, **changed}, rows, restart)


def run(output: Path, restart: bool = False, text: str = "So.", **changed: Any) -> list[int]:
    """Run a batch to its end, and return which rows were answered."""
    answered = []
    with contextlib.closing(begin(output, restart, **changed)) as journal:
        for position in ORDER:
            if position not in journal.finished:
                journal.write(position, answer(ROWS[position], text))
                answered.append(position)
        journal.complete()
    return answered


def run_some(output: Path, *positions: int, restart: bool = False, text: str = "So.", **changed: Any) -> None:
    """Answer some rows of a batch, and leave it."""
    with contextlib.closing(begin(output, restart, **changed)) as journal:
        for position in positions:
            journal.write(position, answer(ROWS[position], text))


def refused(opening: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(BatchError) as caught:
        opening()
    assert caught.value.exit_code == 1
    return caught.value.message, caught.value.hint


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder / "out.jsonl"


WHOLE = {"out.jsonl", "out.jsonl.meta.json"}
ON_THE_WAY = {"out.jsonl.partial", "out.jsonl.meta.json"}


# From its beginning to its end.


def test_a_result_stands_in_the_order_of_the_input_beside_what_made_it(output: Path) -> None:
    assert run(output) == list(ORDER)
    assert output.read_bytes() == result()
    assert names(output.parent) == WHOLE
    assert json.loads((output.parent / "out.jsonl.meta.json").read_bytes()) == {
        "version": 1,
        "fingerprint": {**MADE_BY, "stop": ["x"]},
        "rows": 4,
        "replaces": None,
        "failed": 1,
        "result": {"size": len(result()), "sha256": hashlib.sha256(result()).hexdigest()},
    }


def test_finished_rows_are_in_the_partial_file_at_once_and_the_record_before_them(output: Path) -> None:
    journal = begin(output)
    assert names(output.parent) == ON_THE_WAY
    assert json.loads(output_paths(output).meta.read_bytes())["result"] is None
    for count, position in enumerate(ORDER, 1):
        journal.write(position, answer(ROWS[position]))
        lines = output_paths(output).partial.read_bytes().splitlines(keepends=True)
        assert [json.loads(line) for line in lines] == [answer(ROWS[done]) for done in ORDER[:count]]
        assert (journal.done, set(journal.finished)) == (count, set(ORDER[:count]))
        assert not output.exists()
    assert journal.failed == 1
    assert not journal.is_complete
    journal.complete()
    assert (journal.is_complete, journal.done, journal.failed) == (True, 4, 1)
    assert set(journal.finished) == {0, 1, 2, 3}
    journal.complete()
    journal.close()


def test_a_line_has_no_break_in_it_for_any_reader(output: Path) -> None:
    (row,) = read_rows(json.dumps({"prompt": "a\u2028b\u2029c\x85d\x0be\x1cf\rg\nh"}).encode(), "jsonl")
    with contextlib.closing(begin(output, rows=(row,))) as journal:
        journal.write(0, {**answer(row), "text": "\ud83d"})
        journal.complete()
    (line,) = output.read_text("utf-8").splitlines()
    assert (json.loads(line)["prompt"], json.loads(line)["text"]) == (row.prompt, "\ufffd")


def test_a_result_has_the_mode_the_umask_gives(output: Path) -> None:
    before = os.umask(0o027)
    try:
        run(output)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in output.parent.iterdir()} == {0o640}


def test_a_link_stays_and_what_it_leads_to_is_replaced(output: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(output)
    run(link)
    assert link.is_symlink()
    assert (output.read_bytes(), names(output.parent), names(tmp_path)) == (result(), WHOLE, {"link", "results"})
    assert run(link) == []
    run(link, restart=True, text="Again.")
    assert output.read_bytes() == result("Again.")


def test_an_object_that_is_none_of_its_row_is_a_mistake_of_the_program(output: Path) -> None:
    written: list[str] = []
    results: list[Result] = [begin(output), StreamedResult(ROWS, written.append)]
    for each in results:
        good = answer(ROWS[0])
        reordered = dict(reversed(good.items()))
        for position, value in ((0, answer(ROWS[1])), (0, {"id": 1}), (0, reordered), (4, good), (-1, good)):
            with pytest.raises(ValueError, match=r"no unfinished row|not an object of row"):
                each.write(position, value)
        each.write(0, good)
        with pytest.raises(ValueError, match="no unfinished row at position 0"):
            each.write(0, good)
        with pytest.raises(ValueError, match="3 rows are not finished"):
            each.complete()
        assert (each.done, each.failed, set(each.finished)) == (1, 0, {0})
        each.close()
        each.close()
    assert len(written) == 1


# Going on.


def test_a_batch_goes_on_where_it_ended(output: Path) -> None:
    run_some(output, 3, 1)
    with contextlib.closing(begin(output)) as journal:
        assert (journal.done, journal.failed, set(journal.finished)) == (2, 1, {1, 3})
    assert run(output) == [2, 0]
    assert (output.read_bytes(), names(output.parent)) == (result(), WHOLE)


def test_a_batch_that_is_done_is_not_run_again(output: Path) -> None:
    run(output)
    before = files.file_stamp(output)
    with contextlib.closing(begin(output)) as journal:
        assert (journal.is_complete, journal.done, journal.failed) == (True, 4, 1)
        journal.complete()
    assert (files.file_stamp(output), names(output.parent)) == (before, WHOLE)


@pytest.mark.parametrize("keep", [1, 20, -2, -1])
def test_a_line_that_was_not_written_to_its_end_is_answered_again(output: Path, keep: int) -> None:
    run_some(output, 3, 1)
    partial = output_paths(output).partial
    first, second = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(first + second[:keep])
    run_some(output)
    assert partial.read_bytes() == first
    assert run(output) == [2, 0, 1]
    assert output.read_bytes() == result()


def test_a_last_line_the_disk_made_up_is_answered_again(output: Path) -> None:
    for junk in (b"\0" * 100, b"\0\0\n", b'{"id": \n'):
        run_some(output, 3, restart=True)
        with output_paths(output).partial.open("ab") as partial:
            partial.write(junk)
        assert run(output) == [2, 0, 1]
        assert output.read_bytes() == result()
        output.unlink()


def test_rows_alike_are_told_apart_by_their_order(output: Path) -> None:
    lines = [{"prompt": prompt, "id": id} for prompt, id in (("a", 1), ("a", 1), ("b", 1), ("a", "1"), ("a", 1))]
    rows = read_rows("\n".join(map(json.dumps, lines)).encode(), "jsonl")
    with contextlib.closing(begin(output, rows=rows)) as journal:
        for position in (0, 3, 1):
            journal.write(position, answer(rows[position]))
    with contextlib.closing(begin(output, rows=rows)) as journal:
        assert set(journal.finished) == {0, 1, 3}
        for position in (4, 2):
            journal.write(position, answer(rows[position]))
        journal.complete()
    assert [json.loads(line)["id"] for line in output.read_bytes().splitlines()] == [1, 1, 1, "1", 1]
    assert [json.loads(line)["prompt"] for line in output.read_bytes().splitlines()] == ["a", "a", "b", "a", "a"]


def test_the_second_of_two_rows_alike_may_be_finished_first(output: Path) -> None:
    lines = [{"prompt": "a", "id": 1, "max_tokens": 9}, {"prompt": "a", "id": 1, "max_tokens": 2}]
    rows = read_rows("\n".join(map(json.dumps, lines)).encode(), "jsonl")
    with contextlib.closing(begin(output, rows=rows)) as journal:
        journal.write(1, {**answer(rows[1]), "text": 'short, "row": 0}'})
    with contextlib.closing(begin(output, rows=rows)) as journal:
        assert set(journal.finished) == {1}
        journal.write(0, {**answer(rows[0]), "text": "long"})
        journal.complete()
    written = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [row["text"] for row in written] == ["long", 'short, "row": 0}']
    assert all(tuple(row) == OUTPUT_KEYS for row in written)


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"1", b'{"id": 1}', json.dumps(answer(ROWS[0])).encode(), b'{"id": \n{}', b"\0\n{}"]
)
def test_a_partial_file_with_lines_of_others_is_refused(output: Path, line: bytes) -> None:
    run_some(output, 0)
    partial = output_paths(output).partial
    before = partial.read_bytes() + line + b"\n"
    partial.write_bytes(before)
    what, do = refused(lambda: begin(output))
    assert what == f"{partial} is damaged: line 2 matches no row of the input"
    assert "use --restart to start over" in do
    assert partial.read_bytes() == before
    assert run(output, restart=True) == list(ORDER)


def test_a_batch_that_came_to_nothing_leaves_nothing(output: Path) -> None:
    run_some(output)
    assert names(output.parent) == set()
    run_some(output, 1)
    run_some(output, model="b", restart=True)
    assert names(output.parent) == set()


# What is refused.


def test_another_batch_does_not_go_on_with_the_rows_of_one(output: Path) -> None:
    run_some(output, 0)
    what, do = refused(lambda: begin(output, model="b"))
    assert what == f"{output}.partial was started with another model (a, now b)"
    assert do == "run the previous command to resume, or use --restart to start over"
    assert names(output.parent) == ON_THE_WAY
    assert run(output) == [2, 3, 1]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"temperature": 0.8}, "another temperature (0.7, now 0.8)"),
        ({"system": "Be brief."}, "another system (none, now Be brief.)"),
        ({"input_sha256": "0" * 64}, f"another input sha256 (none, now {'0' * 39}…)"),
        ({"model": "b", "stop": ("x", "y")}, 'another model (a, now b) and another stop (["x"], now ["x", "y"])'),
        (
            {"model": "b", "temperature": 1, "stop": None, "system": "", "votes": 3},
            'another model (a, now b), another temperature (0.7, now 1), another stop (["x"], now none) and 2 more',
        ),
    ],
)
def test_what_differs_is_named(output: Path, changed: dict[str, Any], told: str) -> None:
    run_some(output, 0)
    assert refused(lambda: begin(output, **changed))[0] == f"{output}.partial was started with {told}"


def test_values_that_look_alike_when_cut_are_named_without_them(output: Path) -> None:
    run_some(output, 0, template="x" * 99 + "a")
    what = refused(lambda: begin(output, template="x" * 99 + "b"))[0]
    assert what == f"{output}.partial was started with another template"


def test_a_result_is_replaced_only_when_that_is_asked_for(output: Path) -> None:
    output.write_bytes(b"mine")
    assert refused(lambda: begin(output)) == (
        f"{output} already exists",
        "use --restart to replace it, or choose another -o",
    )
    assert names(output.parent) == {"out.jsonl"}
    run(output, restart=True)
    assert refused(lambda: begin(output, model="b"))[0] == f"{output} was made with another model (a, now b)"
    output.write_bytes(b"mine")
    assert refused(lambda: begin(output, model="b"))[0] == f"{output} already exists"
    assert refused(lambda: begin(output))[0] == f"{output} was changed after it was completed"
    assert (output.read_bytes(), names(output.parent)) == (b"mine", WHOLE)
    output.unlink()
    assert run(output, model="b") == list(ORDER)


def test_an_old_result_stays_until_the_new_one_is_whole(output: Path) -> None:
    run(output, text="Old.")
    run_some(output, 1, 2, restart=True, model="b")
    assert output.read_bytes() == result("Old.")
    assert "started with another model (b, now a)" in refused(lambda: begin(output))[0]
    assert run(output, model="b") == [0, 3]
    assert (output.read_bytes(), names(output.parent)) == (result(), WHOLE)


def test_a_restart_that_came_to_nothing_is_still_one(output: Path) -> None:
    run(output, text="Old.")
    run_some(output, restart=True, model="b")
    assert output.read_bytes() == result("Old.")
    assert run(output, model="b") == list(ORDER)
    assert output.read_bytes() == result()


def test_restarting_forgets_what_was_begun(output: Path) -> None:
    run_some(output, 0, 1, text="Old.")
    assert run(output, restart=True) == list(ORDER)
    assert output.read_bytes() == result()


def test_a_file_that_came_meanwhile_is_not_replaced(output: Path, tmp_path: Path) -> None:
    journal = begin(output)
    for position in ORDER:
        journal.write(position, answer(ROWS[position]))
    output.write_bytes(b"mine")
    what, do = refused(journal.complete)
    assert what == f"{output} was changed while the batch ran"
    assert do == "move it away, then run it again without --restart to write the result"
    journal.close()
    assert (output.read_bytes(), names(output.parent)) == (b"mine", WHOLE | ON_THE_WAY)
    assert refused(lambda: begin(output))[0] == f"{output} was changed after {output}.partial was started"
    output.rename(tmp_path / "mine")
    assert run(output) == []
    assert output.read_bytes() == result()


def test_a_partial_file_nobody_knows_of_is_refused(output: Path) -> None:
    output_paths(output).partial.write_bytes(b"mine")
    assert (
        refused(lambda: begin(output))[0] == f"{output}.partial exists, but its record out.jsonl.meta.json is missing"
    )
    assert names(output.parent) == {"out.jsonl.partial"}
    assert run(output, restart=True) == list(ORDER)


@pytest.mark.parametrize("record", [b"", b"mine", b"[]", b"{}", b'{"version": 1}', b"\xff", b"[" * 100_000])
def test_a_record_that_is_none_is_refused(output: Path, record: bytes) -> None:
    meta = output_paths(output).meta
    meta.write_bytes(record)
    assert refused(lambda: begin(output))[0] == f"{meta} is not a batch record"
    assert (meta.read_bytes(), names(output.parent)) == (record, {"out.jsonl.meta.json"})
    assert run(output, restart=True) == list(ORDER)


def test_a_record_of_another_version_is_refused(output: Path) -> None:
    output_paths(output).meta.write_bytes(b'{"version": 2}')
    assert refused(lambda: begin(output))[0] == f"{output}.meta.json was written by another version of cerebrum"


def test_a_result_has_one_writer(output: Path) -> None:
    with contextlib.closing(begin(output)) as journal:
        for restart in (False, True):
            what, do = refused(lambda restart=restart: begin(output, restart))  # type: ignore[misc]
            assert (what, do) == ("another process is writing out.jsonl", "wait for it, or choose another -o")
        journal.write(0, answer(ROWS[0]))
    assert run(output) == [2, 3, 1]


def test_where_no_file_can_be_no_result_is_begun(tmp_path: Path) -> None:
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
    for path, what in cases.items():
        with pytest.raises(UsageError) as caught:
            begin(path)
        assert (caught.value.message, bool(caught.value.hint)) == (what, True)
    assert names(tmp_path) == {"file", "pipe", "loop"}


def test_files_that_cannot_be_written_are_told_of_before_anything_is_answered(output: Path) -> None:
    for place in (output_paths(output).partial, output_paths(output).meta):
        place.mkdir()
        assert refused(lambda: begin(output))[0] == f"{place}: Is a directory"
        place.rmdir()
    os.mkfifo(output_paths(output).partial)
    assert refused(lambda: begin(output))[0] == f"{output}.partial is not a regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_told_of(output: Path) -> None:
    output.parent.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written to"):
        begin(output)


def test_the_input_is_never_written_to(output: Path, tmp_path: Path) -> None:
    link = tmp_path / "in.txt"
    for name in ("out.jsonl", "out.jsonl.partial", "out.jsonl.meta.json", "out.jsonl.unfinished"):
        source = output.with_name(name)
        source.write_bytes(b"a")
        link.symlink_to(source)
        for path in (source, link):
            with pytest.raises(UsageError, match=r"the output would overwrite the input"):
                output_paths(output, path)
        link.unlink()
        source.unlink()
    link.write_bytes(b"a")
    assert output_paths(output, link).output == output
    assert output_paths(output, Path("-")).output == output


# A process that ends at any moment.


class Killed(BaseException):
    """What a test's process dies of."""


class Mortal:
    """A life of so many calls to the system that change anything; then every one of them fails, and none happens."""

    CALLS = ("open", "write", "fsync", "ftruncate", "replace", "unlink")

    def __init__(self, life: int, torn: bool) -> None:
        self.life = life
        self._torn = torn

    def wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def mortal(*arguments: Any, **options: Any) -> Any:
            self.life -= 1
            if self.life < 0:
                if self._torn and self.life == -1 and name == "write":
                    call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise Killed
            return call(*arguments, **options)

        return mortal


@contextlib.contextmanager
def living(patch: pytest.MonkeyPatch, life: int, torn: bool = False) -> Iterator[Mortal]:
    """Let calls to the system end after so many; `torn` lets the last one, if it writes, write half."""
    with patch.context() as patched:
        mortal = Mortal(life, torn)
        for name in Mortal.CALLS:
            patched.setattr(os, name, mortal.wrapped(name, getattr(os, name)))
        yield mortal


def lives(patch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    """Return how many calls a piece of work makes."""
    with living(patch, 10**9) as mortal:
        work()
    return 10**9 - mortal.life


@pytest.mark.parametrize("torn", [False, True])
def test_a_batch_killed_before_any_step_goes_on_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no disk is lost here
    folder = tmp_path / "counted"
    folder.mkdir()
    count = lives(monkeypatch, lambda: run(folder / "out.jsonl"))
    assert count > 25
    for life in range(count):
        folder = tmp_path / str(life)
        folder.mkdir()
        output = folder / "out.jsonl"
        finished: list[int] = []
        with living(monkeypatch, life, torn), pytest.raises(Killed), contextlib.closing(begin(output)) as journal:
            for position in ORDER:
                journal.write(position, answer(ROWS[position], "First."))
                finished.append(position)
            journal.complete()
        assert not output.exists() or output.read_bytes() == result("First.")
        again = run(output, text="Second.")
        assert not set(again) & set(finished)
        assert len(again) + len(finished) in (len(ROWS), len(ROWS) - 1)  # one may be on disk that was not told of
        texts = [json.loads(line)["text"] for line in output.read_bytes().splitlines()]
        for position, text in enumerate(texts):
            word = "Second." if position in again else "First."
            assert text is None or text == f"{word} {ROWS[position].prompt}"
        assert (len(texts), names(folder)) == (len(ROWS), WHOLE)
        assert run(output) == []


def test_a_restart_killed_before_any_step_leaves_the_old_result_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no disk is lost here
    folder = tmp_path / "counted"
    folder.mkdir()
    run(folder / "out.jsonl")
    count = lives(monkeypatch, lambda: run(folder / "out.jsonl", restart=True, model="b"))
    outcomes = set()
    for life in range(count):
        folder = tmp_path / str(life)
        folder.mkdir()
        output = folder / "out.jsonl"
        run(output, text="Old.")
        with living(monkeypatch, life), pytest.raises(Killed):
            run(output, restart=True, text="New.", model="b")
        assert output.read_bytes() in (result("Old."), result("New."))
        try:
            run(output, text="New.", model="b")
            outcomes.add("went on")
        except BatchError as error:
            assert "use --restart to replace it" in error.hint
            assert output.read_bytes() == result("Old.")
            assert run(output) == []  # nothing has begun: the old one is still known for what it is
            run(output, restart=True, text="New.", model="b")
            outcomes.add("had not begun")
        assert (output.read_bytes(), names(folder)) == (result("New."), WHOLE)
    assert outcomes == {"went on", "had not begun"}


def test_a_restart_killed_before_any_step_never_takes_rows_of_what_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    folder = tmp_path / "counted"
    folder.mkdir()
    run_some(folder / "out.jsonl", 0, 1, 2, text="Old.")
    count = lives(monkeypatch, lambda: run_some(folder / "out.jsonl", restart=True, model="b"))
    for life in range(count):
        folder = tmp_path / str(life)
        folder.mkdir()
        output = folder / "out.jsonl"
        run_some(output, 0, 1, 2, text="Old.")
        with living(monkeypatch, life), pytest.raises(Killed):
            run_some(output, restart=True, model="b")
        try:
            run(output, text="New.", model="b")
        except BatchError:
            assert run(output, text="Old.") == [3]
        else:
            assert output.read_bytes() == result("New.")


BATCH = """
import sys, time
from pathlib import Path
from cerebrum_cli.batches.journal import open_journal
from cerebrum_cli.batches.rows import OUTPUT_KEYS, failed_object, RowError
from cerebrum_cli.batches.readers import read_rows
rows = read_rows("\\n".join(f"row {n}" for n in range(60)).encode(), "txt")
log = open(sys.argv[2], "a", buffering=1)
journal = open_journal(Path(sys.argv[1]), {"model": "a"}, rows)
log.write("begun\\n")
for position in reversed(range(60)):
    if position not in journal.finished:
        log.write(f"{position}\\n")
        time.sleep(0.002)
        journal.write(position, failed_object(rows[position], RowError("a", "b")))
journal.complete()
"""


def in_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python on a piece of code that can use what stands here."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_process_killed_again_and_again_loses_nothing_and_repeats_at_most_one_row_each_time(
    output: Path, tmp_path: Path
) -> None:
    log, draw, kills = tmp_path / "log", random.Random(5), 0
    log.touch()
    for _ in range(50):
        process, begun = in_process(BATCH, output, log), log.read_text().count("begun")
        while process.poll() is None and log.read_text().count("begun") == begun:
            time.sleep(0.002)
        if kills < 6:
            time.sleep(draw.random() * 0.05)
            process.kill()
            kills += 1
        process.communicate(timeout=30)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    asked = [int(line) for line in log.read_text().split() if line != "begun"]
    assert set(asked) == set(range(60))
    assert len(asked) <= 60 + kills
    assert [json.loads(line)["id"] for line in output.read_bytes().splitlines()] == list(range(1, 61))
    assert names(output.parent) == WHOLE


HOLD = """
import sys
from pathlib import Path
from test_batches_journal import begin
journal = begin(Path(sys.argv[1]))
sys.stdout.write("held\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def test_a_result_another_process_writes_is_refused_until_that_ends(output: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout and process.stdout.readline() == "held\n"
        assert refused(lambda: begin(output))[0] == "another process is writing out.jsonl"
        process.kill()
    assert run(output) == list(ORDER)


# A disk that is full.

FULL = """
import resource, sys
from pathlib import Path
from test_batches_journal import *
output, room = Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
try:
    run(output)
except BatchError as error:
    sys.stdout.write(f"{error.message}\\n{error.hint}\\n")
"""


@pytest.mark.parametrize(
    ("room", "place", "lines"),
    [(100, "out.jsonl.meta.json", 0), (400, "out.jsonl.partial", 1), (900, "out.jsonl", 4)],
)
def test_on_a_full_disk_what_is_finished_stays_and_the_same_command_goes_on(
    output: Path, room: int, place: str, lines: int
) -> None:
    if place == "out.jsonl":  # room for each of the lines, and not for all in one file
        run_some(output, *ORDER)
        room = len(result()) - 1
    process = in_process(FULL, output, room)
    said, _ = process.communicate(timeout=60)
    what, do = said.splitlines()
    assert what == f"{output.with_name(place)}: File too large"
    assert do == "free some space, then run it again without --restart to resume"
    assert names(output.parent) == (ON_THE_WAY if lines else set())
    if lines:
        kept = output_paths(output).partial.read_bytes()
        assert kept.count(b"\n") == lines
        assert kept.endswith(b"\n")
    assert len(run(output)) == len(ROWS) - lines
    assert (output.read_bytes(), names(output.parent)) == (result(), WHOLE)


@pytest.mark.parametrize(("call", "stuck"), [("write", False), ("fsync", False), ("write", True)])
def test_a_write_that_fails_takes_nothing_from_the_next_one(
    output: Path, monkeypatch: pytest.MonkeyPatch, call: str, stuck: bool
) -> None:
    journal = begin(output)
    journal.write(0, answer(ROWS[0]))
    before = output_paths(output).partial.read_bytes()
    with monkeypatch.context() as patched:
        real = os.write

        def failing(descriptor: int, data: bytes | int = b"") -> int:
            if isinstance(data, (bytes, memoryview)) and data:
                real(descriptor, data[:-1])
            if stuck:
                patched.setattr(os, "ftruncate", failing)
            raise OSError(28, "No space left on device")

        patched.setattr(os, call, failing)
        what, _ = refused(lambda: journal.write(1, answer(ROWS[1], "x" * 1000)))
        assert what == f"{output}.partial: No space left on device"
    assert (output_paths(output).partial.read_bytes() == before) != stuck
    assert (journal.done, journal.failed) == (1, 0)
    for position in (1, 3, 2):
        journal.write(position, answer(ROWS[position]))
    assert len(output_paths(output).partial.read_bytes()) == len(result())
    journal.complete()
    assert output.read_bytes() == result()


def test_a_result_the_disk_does_not_take_is_written_when_it_does(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = begin(output)
    for position in ORDER:
        journal.write(position, answer(ROWS[position]))
    for call in ("fsync", "write", "replace", "open"):
        with monkeypatch.context() as patched:

            def failing(*_: Any, **options: Any) -> int:
                raise OSError(5, "Input/output error")

            patched.setattr(os, call, failing)
            what, do = refused(journal.complete)
            assert what in (f"{output}: Input/output error", f"{output}.meta.json.unfinished: Input/output error")
            assert do.startswith("make it writable, then run it again")
        assert not output.exists()
        assert output_paths(output).partial.read_bytes().count(b"\n") == len(ROWS)
    journal.complete()
    assert (output.read_bytes(), names(output.parent)) == (result(), WHOLE)


def test_a_file_its_writer_removes_while_another_waits_for_it_is_made_anew(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(output)
    for position in ORDER:
        first.write(position, answer(ROWS[position]))
    real = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        if not first.is_complete:
            first.complete()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with contextlib.closing(begin(output, restart=True)) as journal:
        journal.write(0, answer(ROWS[0]))
        assert names(output.parent) == WHOLE | ON_THE_WAY


def test_a_partial_file_that_was_changed_is_no_result(output: Path) -> None:
    journal = begin(output)
    for position in ORDER:
        journal.write(position, answer(ROWS[position]))
    with output_paths(output).partial.open("r+b") as partial:
        partial.truncate(50)
    assert refused(journal.complete)[0] == f"{output}.partial was changed while the batch ran"
    journal.close()
    assert names(output.parent) == ON_THE_WAY


# Straight out.


def test_lines_are_streamed_in_the_order_of_the_input() -> None:
    written: list[str] = []
    streamed = StreamedResult(ROWS, written.append)
    for position, count in zip(ORDER, (0, 1, 1, 4), strict=True):
        streamed.write(position, answer(ROWS[position]))
        assert len(written) == count
    streamed.complete()
    streamed.close()
    assert "".join(written).encode() == result()
    assert (streamed.done, streamed.failed, set(streamed.finished)) == (4, 1, {0, 1, 2, 3})


def test_a_stream_that_ends_early_gives_what_is_finished() -> None:
    written: list[str] = []
    streamed = StreamedResult(ROWS, written.append)
    for position in (3, 1):
        streamed.write(position, answer(ROWS[position]))
    assert written == []
    streamed.close()
    streamed.close()
    assert [json.loads(line)["id"] for line in written] == [ROWS[1].id, ROWS[3].id]


def test_nothing_is_written_to_a_stream_that_is_gone() -> None:
    tries: list[str] = []

    def write(text: str) -> None:
        tries.append(text)
        raise BrokenPipeError

    streamed = StreamedResult(ROWS, write)
    streamed.write(1, answer(ROWS[1]))
    with pytest.raises(BrokenPipeError):
        streamed.write(0, answer(ROWS[0]))
    streamed.close()
    assert len(tries) == 1
