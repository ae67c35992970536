"""What happens to finished rows: files that are cut, damaged or changed, and histories of many runs."""

import contextlib
import csv
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from disks import full_disk
from row_files import Killed, limited_calls, open_batch, run_some, write_answers

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.rows.read import InputOptions
from cerebrum_cli.rows.record import Record
from cerebrum_cli.rows.run import Run, open_run, output_paths
from cerebrum_cli.rows.saved import read_saved

TEXT = "Why?\nHow?\nWhen?\n"


def rows_of(output: Path) -> list[dict[str, Any]]:
    with output.open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)] if output.suffix == ".csv" else [json.loads(line) for line in file]


def complete(output: Path, text: str = TEXT) -> list[str]:
    """Answer the rows that are missing; return what was noted. Raises BatchError."""
    with contextlib.closing(open_batch(output, text=text)) as run:
        notes = [f"{notice.message}, {notice.hint}" for notice in run.take_notices()]
        write_answers(run, [run.position_of(place) for place, _ in run.missing()], "Later.")
        run.complete()
        return notes


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_partial_file_that_is_cut_anywhere_is_resumed(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    partial = output_paths(output).partial
    run_some(output, 0, 1, text="First.")
    whole = partial.read_bytes()
    for length in range(len(whole)):
        partial.write_bytes(whole[:length])
        finished = max(0, whole[:length].count(b"\n") - 1)
        complete(output, "Why?\nHow?\n\nWhé\u2028n?\nWho?\n")
        texts = [row["text"] for row in rows_of(output)]
        assert [bool(text) and text.startswith("First.") for text in texts].count(True) == finished, length
        for path in (output, output_paths(output).meta):
            path.unlink()


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_damaged_byte_costs_at_most_its_rows_and_is_noted(tmp_path: Path, name: str) -> None:
    """As after a power cut, which may leave blocks of zeros."""
    output = tmp_path / name
    partial = output_paths(output).partial
    with contextlib.closing(open_batch(output, text=TEXT)) as run:
        write_answers(run, [0, 1, 2], "First.")
    whole = partial.read_bytes()
    header = whole.index(b"\n") + 1
    for place in range(len(whole) - 1):  # a line without its end was not finished
        partial.write_bytes(whole[:place] + b"\0" + whole[place + 1 :])
        if place < header:
            with pytest.raises(BatchError, match=r"partial is damaged"):
                complete(output)
            continue
        [note] = complete(output)
        assert note.startswith(("1 damaged row", "2 damaged rows")) and note.endswith("damaged rows are asked again")
        rows = rows_of(output)
        assert [row["prompt"] for row in rows] == TEXT.split()
        for path in (output, output_paths(output).meta):
            path.unlink()


def test_result_in_progress_is_read_without_its_damaged_rows(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run_some(output, 0, 1, text="First.")
    partial = output_paths(output).partial
    first = partial.read_bytes().index(b"\n") + 1
    whole = partial.read_bytes()
    partial.write_bytes(whole[:first] + b"\0" + whole[first + 1 :])
    saved = read_saved(output)
    assert saved and [row["prompt"] for row, _ in saved.rows()] == ["How?"]


def test_lone_carriage_return_in_a_table_is_one_record(tmp_path: Path) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('note,prompt\n"one\rtwo",Why?\n')
    for longer in ("", "x,How?\n"):
        with source.open("a") as file:
            file.write(longer)
        with opened(source, output) as run:
            for place, row in run.missing():
                run.write(place, object_of(row, "a\rb"))
            run.complete()
    assert [(row["note"], row["text"]) for row in rows_of(output)] == [("one\rtwo", "a\rb"), ("x", "a\rb")]


@contextlib.contextmanager
def opened(source: Path, output: Path, settings: dict[str, Any] | None = None, **options: Any) -> Iterator[Run]:
    with (
        InputOptions().open(source, None, output) as rows,
        contextlib.closing(open_run(output, Record(settings or {}), rows, rows.table(output), **options)) as run,
    ):
        yield run


def object_of(row: Any, text: str) -> dict[str, Any]:
    object = {"id": row.id, "prompt": row.prompt, "text": text, "final_answer": None, "finish_reason": "stop"}
    return object | {"votes": None, "error": None} | ({} if row.input is None else {"input": row.input})


def test_table_that_a_spreadsheet_saved_is_continued_only_if_no_cell_changed(tmp_path: Path) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("code,prompt\n001,Why?\n")
    with opened(source, output) as run:
        for place, row in run.missing():
            run.write(place, object_of(row, "So."))
        run.complete()
    written = output.read_bytes()
    output.write_bytes(written.replace(b"\n", b"\r\n"))
    source.write_text("code,prompt\n001,Why?\n002,How?\n")
    with opened(source, output) as run:
        assert [row.prompt for _, row in run.missing()] == ["How?"]
    output.write_bytes(written.replace(b"\n001", b"\n1"))
    with pytest.raises(BatchError, match="was changed by another program"), opened(source, output):
        pass


def test_answers_to_removed_rows_are_kept_in_a_file(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    complete(output)
    with pytest.raises(BatchError, match=r"out\.jsonl has answers to 2 more rows") as caught:
        open_batch(output, text="Why?\n")
    assert "--restart" in caught.value.hint and len(rows_of(output)) == 3
    [note] = complete(output, "Why?\nWhere?\nWhen?\n")
    assert note.startswith("1 answer to rows that the input no longer has") and "out.jsonl.removed.jsonl" in note
    assert [row["prompt"] for row in rows_of(tmp_path / "out.jsonl.removed.jsonl")] == ["How?"]
    assert [row["prompt"] for row in rows_of(output)] == ["Why?", "Where?", "When?"]


def test_restart_keeps_the_finished_rows_until_its_first_one(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run_some(output, 0, text="First.")
    before = output_paths(output).partial.read_bytes()
    with contextlib.closing(open_batch(output, restart=True)) as run:
        assert run.missing_count == run.size
        with full_disk(10), pytest.raises(BatchError):
            write_answers(run, [0], "Second.")
    assert output_paths(output).partial.read_bytes() == before


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_restart_with_other_settings_that_fails_leaves_the_result_and_its_record(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    complete(output)
    kept = output.read_bytes(), output_paths(output).meta.read_bytes()
    with (
        contextlib.closing(open_batch(output, restart=True, text=TEXT, model="b")) as run,
        full_disk(10),
        pytest.raises(BatchError),
    ):
        write_answers(run, [0])
    assert (output.read_bytes(), output_paths(output).meta.read_bytes()) == kept
    with pytest.raises(BatchError, match="was made with other settings"):
        open_batch(output, text=TEXT, model="b")


def test_rows_of_other_settings_are_not_taken_for_finished(tmp_path: Path) -> None:
    """Even if a record of these settings stands beside them."""
    output = tmp_path / "out.jsonl"
    complete(output)
    meta = output_paths(output).meta
    meta.write_text(meta.read_text().replace('"model": "a"', '"model": "b"'))
    with pytest.raises(BatchError, match="was changed by another program"):
        open_batch(output, text=TEXT, model="b")


def test_no_two_rows_share_a_place(tmp_path: Path) -> None:
    """From which their seeds follow: rows that are inserted or moved get others."""
    output = tmp_path / "out.jsonl"
    with contextlib.closing(open_batch(output, text="a\nb\nc\n")) as run:
        write_answers(run, [0, 2])
    with contextlib.closing(open_batch(output, text="x\na\nb\nc\ny\n")) as run:
        places = {row.prompt: place for place, row in run.missing()}
        assert places == {"x": 5, "b": 6, "y": 4}
        assert {row.prompt: place for place, row in run.missing()} == places
        write_answers(run, [0])
    with contextlib.closing(open_batch(output, text="y\nx\na\nb\nc\n")) as run:
        assert {row.prompt: place for place, row in run.missing()} == {"y": 6, "b": 3}


def test_row_that_comes_back_has_a_place_of_its_own(tmp_path: Path) -> None:
    output, more = tmp_path / "out.jsonl", "".join(f"{number}\n" for number in range(9))
    complete(output, "a\nb\n")
    with contextlib.closing(open_batch(output, text=f"a\nc\n{more}")) as run:
        assert {row.prompt: place for place, row in run.missing()}["c"] == 11
        write_answers(run, [1])
    with contextlib.closing(open_batch(output, text=f"a\nb\nc\n{more}")) as run:
        assert [run.finished.flags[position] > 0 for position in range(4)] == [True, True, True, False]


def test_result_with_equal_rows_stays_when_nothing_is_new(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    for text in ("a\nb\na\n", "b\na\na\nc\n", "c\na\na\na\n"):
        complete(output, text)
        written = output.read_bytes()
        complete(output, text)
        assert output.read_bytes() == written


def test_full_disk_leaves_the_file_of_removed_answers_as_it_was(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    complete(output)
    complete(output, "Why?\nWhere?\nWhen?\n")
    removed = output_paths(output).removed
    before = removed.read_bytes()
    with contextlib.closing(open_batch(output, text="Why?\nWho are you?\nWhen?\n")) as run:
        write_answers(run, [1])
        with full_disk(len(before) + 100), pytest.raises(BatchError):
            run.complete()
    assert removed.read_bytes() == before
    complete(output, "Why?\nWho are you?\nWhen?\n")
    assert [row["prompt"] for row in rows_of(removed)] == ["How?", "Where?"]
    assert [row["prompt"] for row in rows_of(output)] == ["Why?", "Who are you?", "When?"]


# Histories: after each run that ends well, the output has one right answer of its settings for each row.

PROMPTS = [f"question {letter}" for letter in "abcdefgh"]


def written(prompts: Sequence[str], choose: random.Random, suffix: str) -> str:
    """The same rows as some program may write them."""
    if suffix == ".csv":
        extra = choose.random() < 0.3
        names = ["prompt", "note"] if extra else ["prompt"]
        return "".join(
            f"{','.join(cells)}\n" for cells in (names, *([prompt, "n"][: len(names)] for prompt in prompts))
        )
    lines = []
    for prompt in prompts:
        row: dict[str, Any] = {"prompt": prompt}
        if choose.random() < 0.2:
            row = {"note": choose.random(), **row}
        lines.append(json.dumps(row, separators=choose.choice(((",", ":"), (", ", ": ")))))
    return "".join(f"{line}\n" for line in lines)


class History:
    """Runs of one output, each with an input, settings and perhaps an accident."""

    def __init__(self, folder: Path, choose: random.Random) -> None:
        self.choose = choose
        self.suffix = choose.choice((".jsonl", ".csv"))
        self.source, self.output = folder / f"in{self.suffix}", folder / f"out{choose.choice(('.jsonl', '.csv'))}"
        self.prompts, self.settings, self.name = PROMPTS[:4], 1, "a"

    def change(self) -> None:
        """Change the input, or what is asked with."""
        choose = self.choose
        match choose.choice(("same", "longer", "shorter", "reordered", "edited", "settings", "name")):
            case "longer":
                self.prompts = [*self.prompts, *choose.choices(PROMPTS, k=2)]
            case "shorter":
                self.prompts = self.prompts[: max(1, len(self.prompts) - 2)]
            case "reordered":
                self.prompts = choose.sample(self.prompts, len(self.prompts))
            case "edited":
                self.prompts[choose.randrange(len(self.prompts))] = f"question {choose.random()}"
            case "settings":
                self.settings = choose.choice((1, 2))
            case "name":
                self.name = choose.choice("ab")
        self.source.write_text(written(self.prompts, choose, self.suffix))

    def answer(self, most: int, **options: Any) -> bool:
        """Answer some missing rows; return whether the result is complete."""
        settings = {"max_tokens": self.settings, "model": self.name, "model file": "digest"}
        with opened(self.source, self.output, settings, **options) as run:
            if self.choose.random() < 0.2:  # another process comes
                with pytest.raises(BatchError, match="another process"), opened(self.source, self.output, settings):
                    pass
            for count, (place, row) in enumerate(run.missing()):
                if count == most:
                    return False
                run.write(place, object_of(row, f"{self.settings}: {row.prompt}"))
            run.complete()
            return True

    def check(self) -> None:
        rows = rows_of(self.output)
        assert [row["prompt"] for row in rows] == self.prompts
        assert [row["text"] for row in rows] == [f"{self.settings}: {prompt}" for prompt in self.prompts]
        assert len({row["key"] for row in rows}) == len(rows)
        if self.output.suffix == ".jsonl":
            assert [row["id"] for row in rows] == [*range(1, len(rows) + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_random_histories_end_with_right_answers_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for number in range(50):
        choose = random.Random(f"{seed} {number}")
        with tempfile.TemporaryDirectory(dir=tmp_path) as name:
            history = History(Path(name), choose)
            for _ in range(10):
                history.change()
                most, restart = choose.choice((0, 1, 2, 99)), choose.random() < 0.2
                accident = choose.choice(("none", "none", "killed", "full disk"))
                try:
                    if accident == "killed":
                        with limited_calls(monkeypatch, choose.randrange(40), torn=True):
                            is_complete = history.answer(most, restart=restart)
                    elif accident == "full disk":
                        with full_disk(choose.randrange(3000)):
                            is_complete = history.answer(most, restart=restart)
                    else:
                        is_complete = history.answer(most, restart=restart)
                except (BatchError, Killed):
                    continue
                if is_complete:
                    history.check()
            history.source.write_text(written(history.prompts, choose, history.suffix))
            history.answer(99, restart=True)
            history.check()
