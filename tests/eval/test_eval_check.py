"""`eval --check python`: votes with a program after each sample, and what they cost."""

import json
from pathlib import Path

import pytest
from command_line import Finished, assert_error
from scripted_command import run_here

from cerebrum_cli.core.ask import Votes
from cerebrum_cli.eval.comparison import question_results
from cerebrum_cli.eval.questions import Sample
from cerebrum_cli.eval.report import by_check, vote_costs, votes_of
from cerebrum_cli.replies import checking
from cerebrum_cli.replies.source import ONLY_HERE
from cerebrum_cli.replies.tally import Program, Tally

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
    return run_here(SCRIPT, home, "eval", str(exam), "-m", str(model), "--json", "-q", *arguments)


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
    assert (report["checked"]["n"], report["checked"]["accuracy"]["value"], report["unchecked"]) == (2, 0.5, None)
    assert report["unsupported"] == 0.25
    [path] = (path for path in tmp_path.rglob("exam-*.jsonl"))
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(each["answer"], each.get("program"), each.get("program_output")) for each in samples[:4]] == [
        *(("5", FOUR, "4"), ("7", UNSUPPORTED, None), ("5", FOUR, "4"), ("4", FOUR, "4")),
    ]
    assert [each["correct"] for each in samples].count(True) == 3
    shown = run_here(SCRIPT, tmp_path, "runs", "show", str(path), "--plot", str(tmp_path / "votes.png"))
    assert shown.code == 0 and "checked answers (2)" in shown.out
    rescored = run_here(SCRIPT, tmp_path, "runs", "show", str(path), "--rescore", "--json", "-q")
    assert rescored.object["votes"] == report["votes"]


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


def sample(number: int, answer: str | None, output: str | None, reference: str = "4") -> Sample:
    return Sample(
        *(1, number, "m", 0, "", None, answer, reference, answer == reference, 0.5, "stop", 10),
        basis="stated",
        program_output=output,
        program_tokens=5,
    )


CASES = ("a.a.b.", "a.a.bb", "a.b.cb", "ab..", "acbc", "aabbb.", "...b", "abba", "aabb", "a.b.bbaa", "....", "abbccd")


@pytest.mark.parametrize("case", CASES)
def test_vote_of_a_run_wins_as_the_vote_of_a_command(case: str) -> None:
    tally, samples = Tally(Votes(8, 8, checks=True)), list[Sample]()
    for number, (reply, output) in enumerate(zip(case[::2], case[1::2], strict=True)):
        answer, printed = (None if letter == "." else letter for letter in (reply, output))
        tally = tally.add(answer, answer is not None, Program("", printed))
        samples.append(sample(number, answer, printed, reference="a"))
    won = votes_of(samples).vote.tally.winner
    assert (won and won.form) == (tally.winner and tally.winner.form)
    assert {result.form for result in question_results({1: samples}).values()} == {won and won.form}
    assert list(by_check([samples])) == ([tally.winner.is_checked] if tally.winner else [])


def test_vote_costs_count_tokens_of_replies_and_programs() -> None:
    questions = [[sample(0, "4", "4"), sample(1, "5", None)], [sample(0, "5", "4"), sample(1, "5", "5")]]
    costs = [(cost.kind, cost.samples, cost.accuracy.value, cost.tokens) for cost in vote_costs(questions)]
    assert costs == [("maj", 1, 0.25, 10), ("maj", 2, 0.25, 20), ("checked", 1, 0.25, 15), ("checked", 2, 0.5, 30)]
