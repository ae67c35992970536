"""`eval --check python`: votes with a program after each sample, and what they cost."""

import json
from pathlib import Path

import pytest
from command_line import Finished, assert_error
from scripted_command import run_here

from cerebrum_cli.replies import checking
from cerebrum_cli.replies.source import ONLY_HERE

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
