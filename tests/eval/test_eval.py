"""`cerebrum eval` and `cerebrum runs` on the bundled model: reports, growth, interrupts, refusals, comparisons."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

import cases
import pytest
from command_line import CommandLine, Finished, assert_error
from scripted_command import run_here

from cerebrum_cli.batch.input_row import OUTPUT_KEYS
from cerebrum_cli.core.row_fields import INCOMPLETE
from cerebrum_cli.engine.machine import processor_name
from cerebrum_cli.replies import checking
from cerebrum_cli.replies.source import ONLY_HERE
from scripts.nano.measure import MODEL_FILE
from scripts.nano.questions import held_out

pytestmark = pytest.mark.slow

MODEL = ("-m", str(MODEL_FILE), "--format", "cerebrum")


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """Forty of nano's held-out sums."""
    rows = [{"question": turns[0], "answer": answer} for turns, answer in held_out()[:40]]
    return write_questions(tmp_path / "sums.jsonl", rows)


def write_questions(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def run_eval(command: CommandLine, source: Path | str, *arguments: str | Path) -> Finished:
    return command.run("eval", source, *MODEL, "--json", *arguments)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.read_text(encoding="utf-8").splitlines()]


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(f"{run}.meta.json").read_text(encoding="utf-8"))
    return record


def problem(done: Finished) -> str:
    """The first line of an error; the command printed nothing else."""
    assert done.code == 2, done.err
    assert done.out == ""
    return done.err.splitlines()[0]


def test_bundled_model_answers_the_bundled_questions(command: CommandLine, tmp_path: Path) -> None:
    done = command.run("eval", "sums", "-m", "nano", "--limit", "8", "--json", "-o", tmp_path / "run.jsonl")
    assert (done.object["task"], done.object["model"], done.object["n"]) == ("sums", "nano", 8)
    assert done.object["accuracy"] >= 0.75


def test_eval_reports_accuracy_and_saves_each_row(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    done = run_eval(command, sums, "--limit", "10", "-o", run)
    assert done.code == 0, done.err
    report, rows = done.object, rows_of(run)
    assert (report["task"], report["n"], report["samples"], report["failed"]) == ("sums", 10, 1, 0)
    assert report["accuracy"] == sum(row["final_answer"] == row["reference"] for row in rows) / 10
    assert 0 <= report["interval"][0] <= report["accuracy"] <= report["interval"][1] <= 1
    assert set(report["maj"]) == set(report["pass_at"]) == {"1"}
    assert (report["no_answer"], report["truncated"], report["tokens_per_sample"] > 5) == (0, 0, True)
    assert all(tuple(row) == (*OUTPUT_KEYS, "reference", "key") for row in rows)
    ids = [row["id"] for row in rows]
    assert ids != sorted(ids)  # a random subset, not the first lines
    short = run_eval(command, sums, "--limit", "4", "--max-tokens", "6", "-o", tmp_path / "short.jsonl").object
    assert (short["accuracy"], short["no_answer"], short["truncated"]) == (0.0, 0.0, 1.0)


def test_larger_limit_asks_only_the_other_questions(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run.jsonl", tmp_path / "whole.jsonl"
    sampled = ("--samples", "2", "--temperature", "0.8", "-o")
    assert run_eval(command, sums, "--limit", "10", *sampled, run).code == 0
    first = rows_of(run)
    done = run_eval(command, sums, "--limit", "20", *sampled, run)
    assert "20 of 20 done" in done.err and done.object["n"] == 20
    assert rows_of(run)[:10] == first
    assert run_eval(command, sums, "--limit", "20", *sampled, whole).code == 0
    assert [row["votes"] for row in rows_of(run)] == [row["votes"] for row in rows_of(whole)]
    samples = [sample for row in rows_of(run) for sample in row["votes"]["samples"]]
    assert len({sample["seed"] for sample in samples}) == 40
    refused = run_eval(command, sums, "--limit", "19", *sampled, run)
    assert_error(refused, 1, f"{run} has answers to 1 more question")
    assert len(rows_of(run)) == 20
    refused = run_eval(command, sums, "--limit", "20", "--samples", "3", "--temperature", "0.8", "-o", run)
    assert_error(refused, 1, f"{run} was made with other settings: samples (2, now 3)")


def test_restarted_run_may_be_smaller_and_samples_need_a_temperature(
    command: CommandLine, sums: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run.jsonl"
    assert run_eval(command, sums, "--samples", "3", "--limit", "4", "-o", run).code == 0
    smaller = run_eval(command, sums, "--samples", "2", "--limit", "3", "--restart", "-o", run)
    assert (smaller.object["n"], smaller.object["samples"], len(rows_of(run))) == (3, 2, 3)
    assert record_of(run)["fingerprint"]["temperature"] == 0.7  # of several samples
    greedy = run_eval(command, sums, "--samples", "2", "--temperature", "0", "-o", tmp_path / "other.jsonl")
    assert problem(greedy) == "error: --samples needs a temperature above 0: at 0 all samples are the same"


def test_all_samples_are_taken(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    """A vote of a batch stops once its outcome is certain; accuracy and pass@k are of all samples."""
    run = tmp_path / "run.jsonl"
    assert run_eval(command, sums, "--limit", "4", "--samples", "8", "-o", run).code == 0
    votes = [row["votes"] for row in rows_of(run)]
    assert {len(vote["samples"]) for vote in votes} == {8}
    assert any(vote["tally"][0]["count"] > 4 for vote in votes)


def test_too_long_question_does_not_count(command: CommandLine, tmp_path: Path) -> None:
    too_long = [{"question": "What is 3 plus 4? " * count, "answer": 7} for count in range(500, 505)]
    source = write_questions(tmp_path / "few.jsonl", [{"question": "What is 3 plus 4?", "answer": 7}, *too_long])
    done = run_eval(command, source, "--ctx", "256", "-o", tmp_path / "run.jsonl")
    assert (done.code, done.object["n"], done.object["failed"]) == (6, 1, 5)
    assert "6 of 6 done, 5 failed" in done.err
    assert "failed questions" in command.run("runs", "show", tmp_path / "run.jsonl").out
    source = write_questions(tmp_path / "none.jsonl", too_long[:1])
    for _ in range(2):  # asked, and complete already
        done = run_eval(command, source, "--ctx", "256", "-q", "-o", tmp_path / "none-run.jsonl")
        assert (done.code, done.out) == (6, "")
        assert "error: no question of none-run was answered: the prompt has " in done.err
    assert problem(command.run("runs", "show", tmp_path / "none-run.jsonl")).startswith(
        "error: no question of none-run"
    )


def test_failed_questions_are_asked_again_only_if_that_is_wanted(command: CommandLine, tmp_path: Path) -> None:
    rows = [{"question": "What is 3 plus 4? " * times, "answer": 7} for times in (1, 30)]
    source = write_questions(tmp_path / "two.jsonl", rows)
    for retry, found in ((), 0), ((), 2), (("--retry-failed",), 1):
        done = run_eval(command, source, "--ctx", "256", "-o", tmp_path / "run.jsonl", *retry)
        assert (done.code, done.object["n"], done.object["failed"]) == (6, 1, 1)
        assert done.err.startswith("2 of 2 done" + (f" ({found} by an earlier run)" if found else ""))
    write_questions(source, rows[1:])
    done = run_eval(command, source, "--ctx", "256", "-o", tmp_path / "run.jsonl", "--retry-failed")
    assert_error(done, 1, "has answers to 1 more question")


def test_replies_that_do_not_match_a_schema_are_wrong(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    done = run_eval(command, sums, "--limit", "2", "--schema", "answer int", "--max-tokens", "4", "-o", run)
    assert (done.code, done.object["n"], done.object["failed"], done.object["accuracy"]) == (0, 2, 0, 0.0)
    assert done.err.startswith("2 of 2 done, 2 truncated")
    assert all(row["error"]["type"] == INCOMPLETE for row in rows_of(run))


def test_dry_run_shows_a_prompt_and_the_number_of_questions(command: CommandLine, sums: Path) -> None:
    done = command.run("eval", sums, *MODEL, "--limit", "20", "--samples", "2", "--dry-run")
    assert (done.code, done.out.endswith("\nAI:")) == (0, True), done.err
    assert "20 of 40 questions, 2 samples each" in done.err
    assert not list(command.home.glob("*.jsonl*"))


def test_run_is_named_after_task_and_model(command: CommandLine, sums: Path) -> None:
    done = command.run("eval", sums, "-m", "nano", "--limit", "2", directory=command.home)
    assert done.code == 0 and "answers are in sums-nano.jsonl" in done.err
    shown = command.run("runs", "show", "sums-nano.jsonl", "--json", directory=command.home)
    assert shown.object["n"] == 2
    other = command.run("eval", sums, "-m", "nano", "--limit", "2", "--system", "Hm.", directory=command.home)
    assert_error(other, 1, "sums-nano.jsonl was made with other settings: system (none, now Hm.)", "choose another -o")


def test_run_records_what_it_depends_on_without_the_home_directory(command: CommandLine, sums: Path) -> None:
    model = command.home / "mine.gguf"
    model.write_bytes(MODEL_FILE.read_bytes())
    arguments = ("eval", sums, "-m", model, "--format", "cerebrum", "-o", "run.jsonl")
    assert command.run(*arguments, "--limit", "2").code == 0
    run = command.home / "run.jsonl"
    record = record_of(run)
    assert str(command.home) not in Path(f"{run}.meta.json").read_text(encoding="utf-8")
    assert record["notes"]["reference"] == "~/mine.gguf"
    data = model.read_bytes()
    assert record["fingerprint"]["model file"] == f"{hashlib.sha256(data).hexdigest()} {len(data)}"
    [conditions] = record["notes"]["conditions"]
    assert conditions["hardware"].startswith(processor_name()) and conditions["threads"] == 1
    assert (conditions["GPU layers"], conditions["flash attention"]) == (0, "auto")


def test_runs_of_two_models_are_compared(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(MODEL_FILE.read_bytes())
    runs = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for model, run, limit in zip((MODEL_FILE, other), runs, ("10", "12"), strict=True):
        arguments = ("--format", "cerebrum", "--limit", limit, "-o", run)
        assert command.run("eval", sums, "-m", model, *arguments).code == 0
    done = command.run("runs", "compare", *runs, "--json")
    assert (done.object["n"], done.object["changes"]["flips"], done.object["changes"]["p_value"]) == (10, 0, 1.0)
    assert done.object["differences"] == {}
    assert "left out 2 questions of b without a result in a: " in done.err
    (tmp_path / "old").mkdir()
    for suffix in ("", ".meta.json"):
        copyfile(f"{runs[0]}{suffix}", f"{tmp_path}/old/a.jsonl{suffix}")
    done = command.run("runs", "compare", "old/a.jsonl", "a.jsonl", directory=tmp_path)
    assert "accuracy of old/a.jsonl" in done.out and "accuracy of a.jsonl" in done.out


def test_runs_of_other_prompts_and_settings_are_compared(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    runs = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for run, others in zip(runs, ((), ("--template", "{question} Now.", "--temperature", "0.5")), strict=True):
        assert run_eval(command, sums, "--limit", "4", "-o", run, *others).code == 0
    done = command.run("runs", "compare", *runs)
    title = done.out.partition("\n\n")[0].replace("\n", " ")
    assert title.startswith("sums: ") and "4 questions; the runs differ in " in title
    assert "temperature (0.0 and 0.5)" in title and "template ({question} and {question} Now.)" in title


def test_runs_that_cannot_be_shown_or_compared(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run.jsonl", tmp_path / "other.jsonl"
    assert run_eval(command, sums, "--limit", "2", "-o", run).code == 0
    source = write_questions(tmp_path / "new.jsonl", [{"question": "What is 3 plus 4?", "answer": 7}])
    assert run_eval(command, source, "-o", other).code == 0
    different = command.run("runs", "compare", run, other)
    assert_error(different, 2, "run and other have no answered question in common", "evaluate the same task")
    batch = tmp_path / "answers.jsonl"
    assert command.run("batch", source, "-o", batch, *MODEL, "--template", "{question}").code == 0
    for path in (tmp_path / "missing.jsonl", tmp_path / "no" / "run.jsonl", source, batch):
        reason = "is not a result of cerebrum eval, or of decide --label" if path.exists() else "does not exist"
        assert problem(command.run("runs", "show", path)) == f"error: {path} {reason}"
    assert_error(command.run("runs", "show", tmp_path / "run"), 2, "run does not exist", f"name {run}")


def test_changed_files_are_not_a_run(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    assert run_eval(command, sums, "--limit", "2", "-o", run).code == 0
    for name, before, after in cases.rows("damaged_runs"):
        path = tmp_path / name
        whole = path.read_text(encoding="utf-8")
        assert before in whole
        path.write_text(whole.replace(before, after, 1), encoding="utf-8")
        assert_error(command.run("runs", "show", run), 2, f"{run} is not a result of cerebrum eval", "check the path")
        path.write_text(whole, encoding="utf-8")


def test_runs_in_a_pipe_print_no_control_sequences(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    runs = tmp_path / "a\x1b[31m.jsonl", tmp_path / "b\x1b[32m.jsonl"
    for run in runs:
        assert run_eval(command, sums, "--limit", "2", "--template", "\x1b]0;x\x07{question}", "-o", run).code == 0
    for done in (command.run("runs", "show", runs[0]), command.run("runs", "compare", *runs)):
        assert (done.code, done.out.replace("\n", "").isprintable()) == (0, True), done.err


# Four samples of each question: the answers 5, 7, 5 and 4, and programs that print 4, are not supported, print 4 and 4.
REPLIES = [f"The answer is {number}." for number in (5, 7, 5, 4)]
FOUR, UNSUPPORTED = "print(4)", "import fractions"
PROGRAMS = FOUR, UNSUPPORTED, FOUR, FOUR
AFTER = f"<|im_end|>\n<|im_start|>user\n{checking.QUESTION}"
SCRIPT = {
    "rows": {f"{reply}{AFTER}": program for reply, program in zip(REPLIES, PROGRAMS, strict=True)},
    "seeds": REPLIES,
}
QUESTIONS = [{"question": "2 + 2?", "answer": "4"}, {"question": "2 + 3?", "answer": "5"}]


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(f"{json.dumps(question)}\n" for question in QUESTIONS))
    return path


def evaluate(home: Path, exam: Path, model: Path, *arguments: str) -> Finished:
    return run_here(SCRIPT, home, "eval", exam, "-m", model, "--json", "-q", "-o", home / "run.jsonl", *arguments)


def test_eval_check_reports_votes_with_programs_beside_others(tmp_path: Path, exam: Path, chatml_model: Path) -> None:
    arguments = ("--temperature", "0.7", "--samples", "4", "--check", "python")
    report = evaluate(tmp_path, exam, chatml_model, *arguments).object
    votes = {(vote["kind"], vote["samples"]): vote for vote in report["votes"]}
    assert list(votes) == [(kind, k) for kind in ("maj", "checked") for k in (1, 2, 3, 4)]
    # Of all four, 5 has two replies, and 4 one reply and three programs.
    assert votes["maj", 4]["accuracy"]["value"] == 0.5
    assert votes["checked", 4]["accuracy"]["value"] == 0.5
    assert votes["maj", 4]["tokens"] == sum(map(len, REPLIES))
    assert votes["checked", 4]["tokens"] == votes["maj", 4]["tokens"] + sum(map(len, PROGRAMS))
    assert (report["checked"]["n"], report["checked"]["accuracy"]["value"]) == (2, 0.5)
    path = tmp_path / "run.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    samples = [sample for row in rows for sample in row["votes"]["samples"]]
    assert [(each["final_answer"], each["program"], each["program_output"]) for each in samples[:4]] == [
        *(("5", FOUR, "4"), ("7", UNSUPPORTED, None), ("5", FOUR, "4"), ("4", FOUR, "4")),
    ]
    shown = run_here(SCRIPT, tmp_path, "runs", "show", str(path), "--plot", str(tmp_path / "votes.png"))
    assert shown.code == 0 and "checked answers (2)" in shown.out


def test_one_sample_with_a_check_keeps_temperature_0(tmp_path: Path, exam: Path, chatml_model: Path) -> None:
    done = evaluate(tmp_path, exam, chatml_model, "--temperature", "0", "--check", "python")
    assert (done.code, done.object["n"], done.object["failed"]) == (0, 2, 0), done.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--check", "perl"), "invalid --check: 'perl'"),
        (("--check", "python", "--endpoint", "http://127.0.0.1:1/v1"), ONLY_HERE[0]),
    ],
)
def test_eval_check_refuses_what_it_cannot_do(
    tmp_path: Path, exam: Path, chatml_model: Path, arguments: tuple[str, ...], part: str
) -> None:
    assert_error(evaluate(tmp_path, exam, chatml_model, *arguments), 2, part)
