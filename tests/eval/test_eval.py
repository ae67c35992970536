"""`cerebrum eval` and `cerebrum runs` on the bundled model: reports, growth, interrupts, refusals, comparisons."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cases
import pytest
from command_line import CommandLine, Finished, assert_error
from scripted_command import run_here

from cerebrum_cli.engine.machine import processor_name
from cerebrum_cli.replies import checking
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
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def run_eval(command: CommandLine, source: Path | str, *arguments: str | Path) -> Finished:
    return command.run("eval", source, *MODEL, "--json", *arguments)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.read_text(encoding="utf-8").splitlines()]


def test_bundled_model_answers_the_bundled_questions(command: CommandLine, tmp_path: Path) -> None:
    done = command.run("eval", "sums", "-m", "nano", "--limit", "8", "--json", "-o", tmp_path / "run.jsonl")
    assert (done.object["task"], done.object["model"], done.object["n"]) == ("sums", "nano", 8)
    assert done.object["accuracy"] >= 0.75


def test_larger_limit_asks_only_the_other_questions(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run.jsonl", tmp_path / "whole.jsonl"
    sampled = ("--samples", "8", "--temperature", "0.8", "-o")
    assert run_eval(command, sums, "--limit", "4", *sampled, run).code == 0
    first = rows_of(run)
    done = run_eval(command, sums, "--limit", "8", *sampled, run)
    assert "8 of 8 done" in done.err and done.object["n"] == 8
    assert rows_of(run)[:4] == first
    assert run_eval(command, sums, "--limit", "8", *sampled, whole).code == 0
    votes = [row["votes"] for row in rows_of(run)]
    assert votes == [row["votes"] for row in rows_of(whole)]
    assert any(vote["tally"][0]["count"] > 4 for vote in votes)  # and yet all samples are taken
    assert len({sample["seed"] for vote in votes for sample in vote["samples"]}) == 64
    refused = run_eval(command, sums, "--limit", "7", *sampled, run)
    assert_error(refused, 1, f"{run} has answers to 1 more question")
    assert len(rows_of(run)) == 8


def test_run_records_what_it_depends_on_without_the_home_directory(command: CommandLine, sums: Path) -> None:
    model = command.home / "mine.gguf"
    model.write_bytes(MODEL_FILE.read_bytes())
    arguments = ("eval", sums, "-m", model, "--format", "cerebrum", "-o", "run.jsonl")
    assert command.run(*arguments, "--limit", "2").code == 0
    text = (command.home / "run.jsonl.meta.json").read_text(encoding="utf-8")
    assert str(command.home) not in text
    record = json.loads(text)
    assert record["notes"]["reference"] == "~/mine.gguf"
    data = model.read_bytes()
    assert record["fingerprint"]["model file"] == f"{hashlib.sha256(data).hexdigest()} {len(data)}"
    [conditions] = record["notes"]["conditions"]
    assert conditions["hardware"].startswith(processor_name()) and conditions["threads"] == 1
    assert (conditions["GPU layers"], conditions["flash attention"]) == (0, "auto")


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


def test_eval_check_reports_votes_with_programs_beside_others(tmp_path: Path, chatml_model: Path) -> None:
    questions = [{"question": "2 + 2?", "answer": "4"}, {"question": "2 + 3?", "answer": "5"}]
    exam, path = write_questions(tmp_path / "exam.jsonl", questions), tmp_path / "run.jsonl"
    arguments = ("--json", "-q", "--temperature", "0.7", "--samples", "4", "--check", "python")
    report = run_here(SCRIPT, tmp_path, "eval", exam, "-m", chatml_model, "-o", path, *arguments).object
    votes = {(vote["kind"], vote["samples"]): vote for vote in report["votes"]}
    assert list(votes) == [(kind, k) for kind in ("maj", "checked") for k in (1, 2, 3, 4)]
    # Of all four, 5 has two replies, and 4 one reply and three programs.
    assert votes["maj", 4]["accuracy"]["value"] == 0.5
    assert votes["checked", 4]["accuracy"]["value"] == 0.5
    assert votes["maj", 4]["tokens"] == sum(map(len, REPLIES))
    assert votes["checked", 4]["tokens"] == votes["maj", 4]["tokens"] + sum(map(len, PROGRAMS))
    assert (report["checked"]["n"], report["checked"]["accuracy"]["value"]) == (2, 0.5)
    assert votes["checked", 2]["tokens"] * 2 == votes["checked", 4]["tokens"]
    samples = [sample for row in rows_of(path) for sample in row["votes"]["samples"]]
    assert [(each["final_answer"], each["program"], each["program_output"]) for each in samples[:4]] == [
        *(("5", FOUR, "4"), ("7", UNSUPPORTED, None), ("5", FOUR, "4"), ("4", FOUR, "4"))
    ]
    shown = run_here(SCRIPT, tmp_path, "runs", "show", str(path), "--plot", str(tmp_path / "votes.png"))
    assert shown.code == 0 and "checked answers (2)" in shown.out
