"""Stored runs: names, damaged files, what can be compared, and marking again."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cerebrum_cli.batch.journal import Journal, open_journal
from cerebrum_cli.batch.output_files import output_paths
from cerebrum_cli.batch.result import ResultRows
from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.eval.code_sandbox import require_sandbox
from cerebrum_cli.eval.evaluate import SCHEMA
from cerebrum_cli.eval.questions import SKIPPED, Sample, sample_object
from cerebrum_cli.eval.runs import (
    Run,
    RunStore,
    compare_runs,
    report_of,
    require_run,
    rescored,
    samples_to_keep,
)

CONDITION = {"task": "sums", "model": "tiny", "match": "answer", "question file": "d" * 64, "temperature": 0.0}
OTHER_MODEL = {**CONDITION, "model": "other"}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def sample(id: int, number: int = 0, text: str = "The answer is 7.") -> Sample:
    """A reply whose correct answer is 7."""
    answer = text.removeprefix("The answer is ").removesuffix(".")
    return Sample(id, number, "tiny", 1, text, None, answer, "7", answer == "7", 0.5, "stop", 10)


def skipped(id: int, number: int = 0) -> Sample:
    return replace(sample(id, number), answer=None, correct=False, finish_reason=SKIPPED)


def write_run(
    path: Path,
    samples: Iterable[Sample],
    questions: int,
    k: int = 1,
    notes: Mapping[str, float] | None = None,
    condition: Mapping[str, object] = CONDITION,
) -> Run:
    """Write a run of `questions` questions with `k` samples each; it is complete if it has all of them."""
    samples = list(samples)
    journal = start_run(path, questions, k, condition)
    for each in samples:
        journal.write((int(each.id) - 1) * k + each.sample, sample_object(each))
    journal.write_notes(notes or {})
    if len(samples) == questions * k:
        journal.complete()
    journal.close()
    return require_run(path)


def start_run(path: Path, questions: int, k: int = 1, condition: Mapping[str, object] = CONDITION) -> Journal:
    path.parent.mkdir(exist_ok=True)
    rows = ResultRows(SCHEMA, questions * k, lambda position: (position // k + 1, position % k))
    return open_journal(path, condition, rows, extent={"questions": questions, "samples": k})


# Names and paths.


def test_run_has_a_name_of_its_task_and_model(store: RunStore) -> None:
    condition = {**CONDITION, "task": "a/b c: ü?", "model": "tiny:Q4_K_M"}
    path = store.path_for(condition)
    assert path.name == "a-b-c-ü-tiny-Q4_K_M.jsonl"
    write_run(path, [sample(1)], 1, condition=condition)
    assert store.path_for(condition) == path
    assert store.path_for({**condition, "system": "x"}).name == "a-b-c-ü-tiny-Q4_K_M-2.jsonl"
    assert store.find("a-b-c-ü-tiny-Q4_K_M").path == path


def test_run_of_any_task_has_a_usable_name(store: RunStore) -> None:
    for task in ("?", "ü" * 125, "-rf", ".."):
        condition = {**CONDITION, "task": task}
        run = write_run(store.path_for(condition), [sample(1)], 1, condition=condition)
        assert not run.name.startswith(("-", "."))
        assert store.find(run.name) == run


def test_run_is_found_by_name_or_path(store: RunStore, tmp_path: Path) -> None:
    stored = write_run(tmp_path / "runs" / "one.jsonl", [sample(1)], 1)
    other = write_run(tmp_path / "two.jsonl", [sample(1)], 1)
    assert store.find("one") == stored
    assert store.find(str(other.path)) == other
    for reference in ("two", "none", "", "/", "x" * 300):
        with pytest.raises(UsageError):
            store.find(reference)
    with pytest.raises(UsageError, match="no run named 'ones'") as error:
        store.find("ones")
    assert error.value.hint == "did you mean one?"
    (tmp_path / "other.txt").touch()
    with pytest.raises(UsageError, match=r"other.txt is not a run of cerebrum eval"):
        store.find(str(tmp_path / "other.txt"))


def test_damaged_record_hides_no_other_run(store: RunStore) -> None:
    write_run(store.path_for(CONDITION), [sample(1)], 1)
    other = store.path_for({**CONDITION, "system": "x"})
    for damage in (b"{", b'{"version": 99}', b"\xff"):
        output_paths(other).meta.write_bytes(damage)
        assert [run.name for run in store] == ["sums-tiny"]
        assert store.path_for({**CONDITION, "system": "x"}).name == "sums-tiny-3.jsonl"
        with pytest.raises(BatchError, match=r"another version|is not a batch record"):
            store.find("sums-tiny-2")


def test_incomplete_run_has_its_finished_samples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.jsonl", [sample(2)], 2)
    partial = output_paths(run.path).partial
    partial.write_bytes(partial.read_bytes() + b'{"id": 1')
    assert (run.is_complete, run.samples()) == (False, [sample(2)])
    extent = {"questions": 2, "samples": 1}
    assert samples_to_keep(run.path, CONDITION, extent) == [sample(2)]
    with pytest.raises(BatchError, match=r"was started with another model \(tiny, now other\)"):
        samples_to_keep(run.path, OTHER_MODEL, extent)
    partial.unlink()
    assert run.samples() == samples_to_keep(run.path, CONDITION, extent) == []


def test_run_that_is_being_extended_has_old_and_new_samples(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_run(path, [sample(1), sample(2)], 2)
    run = write_run(path, [sample(3)], 4)
    assert (run.is_complete, run.samples()) == (False, [sample(1), sample(2), sample(3)])
    with contextlib.closing(start_run(path, 4)) as journal:
        journal.write(3, sample_object(sample(4)))
        journal.complete()
    run = require_run(path)
    assert (run.is_complete, [each.id for each in run.samples()]) == (True, [1, 2, 3, 4])


def test_run_in_progress_is_not_deleted(store: RunStore) -> None:
    path = store.path_for(CONDITION)
    journal = start_run(path, 2)
    journal.write(0, sample_object(sample(1)))
    run = store.find("sums-tiny")
    with pytest.raises(BatchError, match=r"another process is writing sums-tiny\.jsonl"):
        store.delete(run)
    assert run.samples() == [sample(1)]
    journal.close()
    store.delete(run)
    assert list(path.parent.iterdir()) == []


# Comparing.


def test_runs_of_other_questions_are_not_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a.jsonl", [sample(1)], 1)

    def refused(difference: str, changed: dict[str, str], samples: Sequence[Sample] = (sample(1),), k: int = 1) -> None:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        other = write_run(path, samples, len(samples) // k, k, condition={**CONDITION, **changed})
        with pytest.raises(UsageError, match=f"they differ in {re.escape(difference)}"):
            compare_runs(first, other)

    refused("question file", {"question file": "x"})
    refused("match", {"match": "exact"})
    refused("system (none and d)", {"system": "d"})
    refused("question file and system (none and d)", {"question file": "c" * 64, "system": "d"})
    refused("number of questions (1 and 2)", {}, [sample(1), sample(2)])
    refused("number of samples (1 and 2)", {}, [sample(1), sample(1, 1)], 2)


def test_runs_of_other_models_are_compared(tmp_path: Path) -> None:
    wrong = "The answer is 8."
    first = write_run(tmp_path / "a.jsonl", [sample(1), sample(2, text=wrong), sample(3)], 3)
    second = write_run(
        tmp_path / "b.jsonl", [sample(1, text=wrong), sample(2, text=wrong), sample(3)], 3, condition=OTHER_MODEL
    )
    found = compare_runs(first, second)
    assert (found.n, found.right_to_wrong, found.wrong_to_right, found.flips) == (3, 1, 0, 1)
    assert (found.accuracy_a, found.accuracy_b) == (2 / 3, 1 / 3)


def test_comparison_leaves_out_what_one_run_lacks(tmp_path: Path) -> None:
    everything = [sample(id, number) for id in range(1, 5) for number in (0, 1)]
    first = write_run(tmp_path / "a.jsonl", everything, 4, 2)
    gaps = [sample(1), sample(1, 1), sample(2), skipped(3), skipped(3, 1)]  # 2 is unfinished, 4 not begun
    second = write_run(tmp_path / "b.jsonl", gaps, 4, 2, condition=OTHER_MODEL)
    assert compare_runs(first, second).n == compare_runs(second, first).n == 1
    none = write_run(tmp_path / "c.jsonl", [skipped(1), sample(2)], 4, 2)
    with pytest.raises(UsageError, match="no finished question in common"):
        compare_runs(first, none)


# Reports and marking again.


def test_report_takes_time_from_the_samples_that_have_one(tmp_path: Path) -> None:
    """Ten seconds for two of four questions: the prompts of the others are too long, which takes no time."""
    taken = [replace(sample(id), completion_tokens=30 * id) for id in (1, 2)]
    notes = {"seconds": 10.0, "timed_samples": 4}
    run = write_run(tmp_path / "run.jsonl", [*taken, skipped(3), skipped(4)], 4, notes=notes)
    report = report_of(run, run.samples())
    assert (report.n, report.accuracy.value, len(report.maj)) == (2, 1.0, 1)
    assert (report.seconds_per_question, report.tokens_per_answer) == (5.0, 45.0)
    code = write_run(tmp_path / "code.jsonl", [sample(1)], 1, condition={**CONDITION, "match": "code"})
    report = report_of(code, code.samples())
    assert (report.maj, len(report.pass_at), report.seconds_per_question) == ((), 1, None)


def test_rescoring_changes_marks_only(tmp_path: Path) -> None:
    outdated = replace(sample(1), answer="8", correct=False)
    cut_off = replace(sample(2, text="It makes 7."), answer="7", correct=True, finish_reason="length")
    choice = replace(sample(3, text="b)"), answer=None, correct=False, gold="B", choices=("x", "y"))
    run = write_run(tmp_path / "run.jsonl", [outdated, cut_off, choice, skipped(4)], 4)
    assert rescored(run, run.samples()) == [
        sample(1),
        replace(cut_off, answer=None, correct=False),
        replace(choice, answer="B", correct=True),
        skipped(4),
    ]
    assert run.samples()[0] == outdated  # the file is not changed


def test_rescoring_code_keeps_replies_without_a_program(tmp_path: Path) -> None:
    try:
        require_sandbox()
    except UsageError as error:
        pytest.skip(error.message)
    test = "def check(f):\n    assert f() == 7\n\ncheck(f)\n"
    program = replace(sample(1), answer="def f():\n    return 7", gold=test, correct=False)
    none = replace(sample(2), answer=None, gold=test, correct=False)
    run = write_run(
        tmp_path / "run.jsonl",
        [program, none, replace(skipped(3), gold=test)],
        3,
        condition={**CONDITION, "match": "code"},
    )
    found = rescored(run, run.samples(), run_code=True)
    assert [(each.answer, each.correct) for each in found] == [(program.answer, True), (None, False), (None, False)]
    with pytest.raises(UsageError, match="this task runs programs"):
        rescored(run, run.samples())
