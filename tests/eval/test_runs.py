"""Stored runs: names, damaged files, what can be compared, and scoring again."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from command_line import CommandLine

from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.eval.evaluate import SAMPLE_ROWS, sample_key
from cerebrum_cli.eval.questions import SKIPPED, Sample, sample_object
from cerebrum_cli.eval.rescoring import (
    compare_runs,
    differences,
    list_differences,
    rescored,
    save_scores,
    version_differences,
)
from cerebrum_cli.eval.runs_command import require_same_rules
from cerebrum_cli.eval.scorers import SCORING_VERSION
from cerebrum_cli.eval.stored_runs import EXTENT, Run, RunStore, report_of, require_run, samples_to_keep
from cerebrum_cli.results import record, saved
from cerebrum_cli.results.results import open_results, output_paths
from cerebrum_cli.results.rows import Results

NOW, NEWER, OLDER = (str(SCORING_VERSION + by) for by in (0, 1, -1))
VERSIONS = {"cerebrum": "0.1.0", "llama.cpp": "abc", "scoring": NOW}
QUESTIONS = {"task": "sums", "question file": "d" * 64}
CONDITION = {**QUESTIONS, "model": "tiny", "match": "answer", "temperature": 0.0, **VERSIONS}
OTHER_MODEL = {**CONDITION, "model": "other"}
Notes = Mapping[str, object]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def sample(id: int, number: int = 0, text: str = "The answer is 7.") -> Sample:
    """A reply whose correct answer is 7."""
    answer = text.removeprefix("The answer is ").removesuffix(".")
    return Sample(id, number, "tiny", 1, text, None, answer, "7", answer == "7", 0.5, "stop", 10, "stated")


def skipped(id: int, number: int = 0) -> Sample:
    return replace(sample(id, number), answer=None, correct=False, finish_reason=SKIPPED)


def is_killed_at_rename(number: int, action: Callable[[], object]) -> bool:
    """Do something in a child process that dies at its rename number N: before it with 2 N, after it with 2 N + 1."""
    child = os.fork()
    if child == 0:
        rename, calls = Path.replace, count()

        def replace_or_die(path: Path, target: Path) -> Path:
            at = 2 * next(calls)
            if at == number:
                os._exit(9)
            renamed = rename(path, target)
            if at + 1 == number:
                os._exit(9)
            return renamed

        Path.replace = replace_or_die  # type: ignore[assignment,method-assign]
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def write_run(
    path: Path,
    samples: Iterable[Sample],
    questions: int,
    k: int = 1,
    notes: Mapping[str, object] | None = None,
    condition: Mapping[str, object] = CONDITION,
) -> Run:
    """Write samples of a run of `questions` questions with `k` samples each; it is complete once it has all of them."""
    with contextlib.closing(start_run(path, questions, k, condition)) as results:
        for each in samples:
            results.write_row((int(each.id) - 1) * k + each.sample, sample_object(each))
        if notes is not None:
            results.write_notes({**results.notes, **notes})
        if len(results.finished) == questions * k:
            results.complete()
    return require_run(path)


def start_run(path: Path, questions: int, k: int = 1, condition: Mapping[str, object] = CONDITION) -> Results:
    path.parent.mkdir(exist_ok=True)
    keys = (sample_key(id, number) for id in range(1, questions + 1) for number in range(k))
    extent = {"questions": questions, "samples": k}
    results = open_results(path, condition, SAMPLE_ROWS, keys)
    results.write_notes({**results.notes, EXTENT: extent})
    return results


def test_run_has_a_name_of_its_task_and_model(store: RunStore) -> None:
    condition = {**CONDITION, "task": "a/b c: ü?", "model": "tiny:Q4_K_M"}
    path, _ = store.path_for(condition)
    assert path.name == "a-b-c-ü-tiny-Q4_K_M.jsonl"
    write_run(path, [sample(1)], 1, condition=condition)
    assert store.path_for(condition) == (path, "")
    assert store.path_for({**condition, "system": "x"})[0].name == "a-b-c-ü-tiny-Q4_K_M-2.jsonl"
    assert store.find("a-b-c-ü-tiny-Q4_K_M").path == path
    for task in ("?", "ü" * 125, "-rf", ".."):
        condition = {**CONDITION, "task": task}
        run = write_run(store.path_for(condition)[0], [sample(1)], 1, condition=condition)
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
    (tmp_path / "other.txt").touch()
    with pytest.raises(UsageError, match=r"other.txt is not a run of cerebrum eval"):
        store.find(str(tmp_path / "other.txt"))


def test_runs_in_a_pipe_print_no_control_sequences(store: RunStore, new_user: CommandLine) -> None:
    names = ("a\x1b[31m", "b\x1b[32m")
    for name in names:
        condition = {**CONDITION, "task": "sums\x1b[1m", "model": name, "template": "\x1b]0;x\x07{text}"}
        write_run(store.directory / f"{name}.jsonl", [sample(1)], 1, condition=condition)
    paths = [store.directory / f"{name}.jsonl" for name in names]
    for done in (new_user.run("runs", "show", paths[0]), new_user.run("runs", "compare", *paths)):
        assert (done.code, done.out.replace("\n", "").isprintable()) == (0, True), done.err


EXTENT_OF_ONE = {EXTENT: {"questions": 1, "samples": 1}}
WRONG_MATCH = json.dumps({"version": 2, "fingerprint": {**CONDITION, "match": 5}, "notes": EXTENT_OF_ONE}).encode()


def test_damaged_record_hides_no_other_run(store: RunStore) -> None:
    write_run(store.path_for(CONDITION)[0], [sample(1)], 1)
    other, _ = store.path_for({**CONDITION, "system": "x"})
    for damage in (b"{", b'{"version": 99}', b"\xff", b'{"version": 2, "fingerprint": 5, "rows": "x"}', WRONG_MATCH):
        output_paths(other).meta.write_bytes(damage)
        assert [run.name for run in store] == ["sums-tiny"]
        assert store.path_for({**CONDITION, "system": "x"})[0].name == "sums-tiny-3.jsonl"
        with pytest.raises(BatchError, match=r"another version|is not a batch record|is damaged: invalid match"):
            store.find("sums-tiny-2")


def test_incomplete_run_has_its_finished_samples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.jsonl", [sample(2)], 2)
    unfinished = output_paths(run.path).partial
    assert (run.saved.is_complete, run.samples()) == (False, [sample(2)])
    extent = {"questions": 2, "samples": 1}
    assert samples_to_keep(run.path, CONDITION, extent) == [sample(2)]
    with pytest.raises(BatchError, match=r"was started with other settings: model \(tiny, now other\)"):
        samples_to_keep(run.path, OTHER_MODEL, extent)
    unfinished.unlink()
    assert run.samples() == samples_to_keep(run.path, CONDITION, extent) == []


def test_run_that_is_being_extended_has_old_and_new_samples(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_run(path, [sample(1), sample(2)], 2)
    run = write_run(path, [sample(3)], 4)
    assert (run.saved.is_complete, run.samples()) == (False, [sample(1), sample(2), sample(3)])
    run = write_run(path, [sample(4)], 4)
    assert (run.saved.is_complete, [each.id for each in run.samples()]) == (True, [1, 2, 3, 4])


def test_run_killed_before_its_file_is_replaced_has_all_samples(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_run(path, [sample(1)], 1)
    # the record of the whole run is written, and its file is not
    assert is_killed_at_rename(3, lambda: write_run(path, [sample(2)], 2))
    run = require_run(path)
    assert run.saved.record.rows == 2
    assert (run.saved.is_complete, run.samples()) == (False, [sample(1), sample(2)])


def test_run_in_progress_is_not_deleted(store: RunStore) -> None:
    path, _ = store.path_for(CONDITION)
    results = start_run(path, 2)
    results.write_row(0, sample_object(sample(1)))
    list(results.objects())  # which stores them
    run = store.find("sums-tiny")
    with pytest.raises(BatchError, match=r"another process is writing sums-tiny\.jsonl") as error:
        run.saved.delete()
    assert error.value.hint == "wait until it has ended"
    assert run.samples() == [sample(1)]
    results.close()
    run.saved.delete()
    assert list(path.parent.iterdir()) == []


def test_run_is_extended_with_the_versions_and_rules_that_made_it(store: RunStore) -> None:
    path, _ = store.path_for(CONDITION)
    write_run(path, [sample(1), sample(2)], 2)
    newer = {**CONDITION, "cerebrum": "0.2.0", "llama.cpp": "def"}
    difference = "other settings: cerebrum (0.1.0, now 0.2.0) and llama.cpp (abc, now def)"
    with pytest.raises(BatchError) as caught:
        samples_to_keep(path, newer, {"questions": 2, "samples": 1})
    assert caught.value.message == f"{path} was made with {difference}"
    other, why_new = store.path_for(newer)
    assert why_new == f"sums-tiny was made with {difference}; this is a new run, sums-tiny-2"
    write_run(other, [sample(1)], 1, condition=newer)
    assert store.path_for(newer) == (other, "")
    for changed, words in (
        ({"temperature": 1.0}, "other settings: temperature (0.0, now 1.0)"),
        ({"scoring": NEWER}, f"other settings: scoring ({NOW}, now {NEWER})"),
    ):
        _, why_new = store.path_for({**newer, **changed})
        assert why_new == f"sums-tiny-2 was made with {words}; this is a new run, sums-tiny-3"


def test_runs_of_other_settings_are_compared_and_the_difference_named(tmp_path: Path) -> None:
    """Prompt, system text, format, sampling, or how many: every difference between runs of one model has a name."""
    first = write_run(tmp_path / "a.jsonl", [sample(1)], 1, condition={**CONDITION, "format": "chatml"})

    def named(
        changed: dict[str, object], samples: Sequence[Sample] = (sample(1),), k: int = 1, notes: Notes | None = None
    ) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        condition = {**CONDITION, "format": "chatml", **changed}
        other = write_run(path, samples, len(samples) // k, k, notes=notes, condition=condition)
        assert compare_runs(first, other)[0].n == 1
        return list_differences(differences(first, other))

    system = "You are a mathematician who checks every step."
    assert named({"system": system}) == "system (none and You are a mathematician who checks ever…)"
    assert named({"template": "{q}", "temperature": 0.7}) == "temperature (0.0 and 0.7) and template (none and {q})"
    assert named({"prompt": "Q: {question}"}) == "prompt (none and Q: {question})"
    assert named({"match": "exact"}) == "match (answer and exact)"
    adapter = named({"adapter": "f" * 64}, notes={"lora": ["/a/terse.gguf:0.5"]})
    assert adapter == "adapter (none and terse.gguf:0.5)"
    assert named({}, [sample(1), sample(2)]) == "number of questions (1 and 2)"
    assert named({}, [sample(1), sample(1, 1)], 2) == "number of samples (1 and 2)"
    assert named({"model": "other", "model file": "x", "task": "renamed"}) == ""
    assert named({"model": "other", "model file": "x", "format": "plain"}) == "format (chatml and plain)"


def test_comparison_is_of_scores_by_one_version(store: RunStore) -> None:
    write_run(store.directory / "a.jsonl", [sample(1)], 1, condition={**OTHER_MODEL, "scoring": OLDER})
    write_run(store.directory / "b.jsonl", [sample(1)], 1)
    for names in (("a", "b"), ("b", "a")):
        with pytest.raises(UsageError) as error:
            require_same_rules([store.find(name) for name in names], names)
        assert error.value.message == f"a was scored by rules version {OLDER}, not rules version {NOW}"
        assert error.value.hint == "score it again: cerebrum runs show a --rescore --save"
    require_same_rules([store.find("a")] * 2, ("a", "a"))


def test_comparison_names_other_versions(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a.jsonl", [sample(1)], 1)
    changed = {"llama.cpp": "def", "prompt": "User: {question}", "dataset": "o/r at 123"}
    second = write_run(tmp_path / "b.jsonl", [sample(1)], 1, condition={**OTHER_MODEL, **changed})
    assert compare_runs(first, second)[0].n == 1
    assert version_differences(first, second) == {"llama.cpp": ("abc", "def")}
    notes = {"servers": [{"kind": "llama-server", "build": "b123", "model": "tiny.gguf"}]}
    served = write_run(tmp_path / "c.jsonl", [sample(1)], 1, condition={**CONDITION, "llama.cpp": None}, notes=notes)
    assert version_differences(first, served) == {"llama.cpp": ("abc", "llama-server b123")}


def test_comparison_leaves_out_what_one_run_lacks(tmp_path: Path) -> None:
    everything = [sample(id, number) for id in range(1, 5) for number in (0, 1)]
    first = write_run(tmp_path / "a.jsonl", everything, 4, 2)
    gaps = [sample(1), sample(1, 1), sample(2), skipped(3), skipped(3, 1)]  # 2 is unfinished, 4 not begun
    second = write_run(tmp_path / "b.jsonl", gaps, 4, 2, condition=OTHER_MODEL)
    assert compare_runs(first, second)[0].n == compare_runs(second, first)[0].n == 1
    assert compare_runs(first, second)[1] == [
        f"left out 3 questions of {first.name} without a result in {second.name}: 2, 3, 4"
    ]
    none = write_run(tmp_path / "c.jsonl", [skipped(1), sample(2)], 4, 2)
    with pytest.raises(UsageError, match="no finished question in common"):
        compare_runs(first, none)


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
    assert (report.maj, len(report.pass_at), report.seconds_per_question) == ({}, 1, None)


def test_rescoring_changes_scores_only(tmp_path: Path) -> None:
    outdated = replace(sample(1), answer="8", correct=False)
    cut_off = replace(sample(2, text="It makes 7."), answer="7", correct=True, finish_reason="length")
    choice = replace(sample(3, text="b)"), answer=None, correct=False, reference="B", choices=("x", "y"))
    run = write_run(tmp_path / "run.jsonl", [outdated, cut_off, choice, skipped(4)], 4)
    assert rescored(run)[0] == [
        sample(1),
        replace(cut_off, answer=None, correct=False, basis="missing"),
        replace(choice, answer="B", correct=True),
        skipped(4),
    ]
    assert run.samples()[0] == outdated  # the file is not changed


@pytest.mark.parametrize("questions", [4, 5])
def test_saved_scores_are_those_of_this_version(tmp_path: Path, questions: int) -> None:
    """Of a complete run, and of one that lacks a question."""
    outdated = replace(sample(1), answer="8", correct=False)
    condition = {**CONDITION, "scoring": OLDER}
    samples = [outdated, sample(3), sample(2), skipped(4)]
    (tmp_path / "run.jsonl").symlink_to(tmp_path / "whole.jsonl")
    run = write_run(tmp_path / "run.jsonl", samples, questions, notes={"seconds": 1.0}, condition=condition)
    before = run.samples()
    assert save_scores(run) == ([sample(1), *before[1:]], 1)
    scored = require_run(run.path)
    assert (scored.scored_by, scored.saved.is_complete, scored.notes["seconds"]) == (NOW, questions == 4, 1.0)
    assert scored.samples() == [sample(1), *before[1:]]
    assert samples_to_keep(run.path, CONDITION, {"questions": 5, "samples": 1}) == scored.samples()
    extended = write_run(run.path, [sample(5)], 5)
    assert [each.answer for each in extended.samples()] == ["7", "7", "7", None, "7"]
    assert {path.name for path in tmp_path.iterdir()} == {"run.jsonl", "whole.jsonl", "whole.jsonl.meta.json"}


def test_saved_scores_need_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = write_run(tmp_path / "run.jsonl", [sample(1)], 1)
    for module in (saved, record):
        monkeypatch.setattr(module, "atomic_write", fail)
        with pytest.raises(BatchError, match="No space left on device") as error:
            save_scores(run)
        assert error.value.hint == "free some disk space, then run it again"
        assert run.samples() == [sample(1)]


@pytest.mark.slow
@pytest.mark.parametrize("questions", [2, 3])
def test_saved_scores_are_old_or_new_after_a_kill(tmp_path: Path, questions: int) -> None:
    condition, outdated = {**CONDITION, "scoring": OLDER}, replace(sample(1), answer="8", correct=False)
    old, new, found = [outdated, sample(2)], [sample(1), sample(2)], []
    for step in count():
        path = tmp_path / f"{step}.jsonl"
        run = write_run(path, old, questions, condition=condition)
        is_killed = is_killed_at_rename(step, partial(save_scores, run))
        run = require_run(path)
        found.append(run.scored_by)
        samples = run.samples()
        assert samples in (old, new)
        assert run.scored_by in (None, NOW if samples == new else OLDER)
        save_scores(run)
        assert require_run(path).samples() == new
        assert samples_to_keep(path, CONDITION, {"questions": 3, "samples": 1}) == new
        if not is_killed:
            break
    assert found == [OLDER, None, None, None, None, NOW, NOW]


@pytest.mark.usefixtures("bubblewrap")
def test_rescoring_code_keeps_replies_without_a_program(tmp_path: Path) -> None:
    test = "def check(f):\n    assert f() == 7\n\ncheck(f)\n"
    code = 'def f():\n    """Return 7.\n\n    ```\n    f()\n    ```\n    """\n    return 7'
    program = replace(sample(1), answer=code, reference=test, correct=False)
    none = replace(sample(2), answer=None, reference=test, correct=False)
    samples = [program, none, replace(skipped(3), reference=test)]
    run = write_run(tmp_path / "run.jsonl", samples, 3, condition={**CONDITION, "match": "code"})
    found = rescored(run, run_code=True)[0]
    assert [(each.answer, each.correct) for each in found] == [(code, True), (None, False), (None, False)]
    with pytest.raises(UsageError, match="this task runs programs"):
        rescored(run)
