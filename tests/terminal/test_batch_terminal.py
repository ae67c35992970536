"""Progress of batches, evaluations and votes at a real terminal, which is erased at the end."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from nano.measure import MODEL_FILE
from person import OpenTerminal, Person
from rich.cells import cell_len
from scripted_command import SCRIPTED

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SAMPLES = [
    "The answer is 日本語の答え.",
    "Well, the answer is 日本語の答え.",
    "So it is, and after that much the answer is 5.",
    "語" * 40 + " The answer is 日本語の答え.",
    "y" * 100,
]


@pytest.fixture
def start(open_terminal: OpenTerminal, chatml_model: Path) -> OpenTerminal:
    """A function that runs a command with a scripted model at a terminal."""

    def start(
        script: dict[str, Any],
        command: str,
        *arguments: str,
        size: tuple[int, int] = (80, 24),
        before: str = "exec",
        after: str = "",
        **env: str,
    ) -> Person:
        script = {"rows": {}, "pause": 0.002, **script}
        argv = [sys.executable, SCRIPTED, json.dumps(script), command, "-m", chatml_model, *arguments]
        return open_terminal("sh", "-c", f'{before} "$0" "$@" {after}', *argv, size=size, **env)

    return start


def rows(home: Path, count: int = 40) -> tuple[str, ...]:
    """Arguments of a batch that takes a second and has one invalid row."""
    (home / "in.jsonl").write_text("nonsense\n" + '{"prompt": "q"}\n' * (count - 1))
    return "batch", "in.jsonl", "-o", "out", "--parallel", "4"


REPLY = {"seeds": ["a reply of some length"]}
QUICK = {**REPLY, "pause": 0.0004}
INSTANT = {**REPLY, "pause": 0.0}


# A batch.


def test_batch_bar_shows_progress_and_is_erased(start: OpenTerminal, tmp_path: Path) -> None:
    person = start({**REPLY, "load": 0.15}, *rows(tmp_path, 30))
    person.wait_for("loading chatml 50%")
    person.wait_for("/30 ━")
    person.wait_for("1 failed")
    person.wait_for("left")
    assert len(person.screen.lines) == 1
    assert person.end() == 6
    line, error = person.screen.lines
    assert error == "  row 1: not JSON: Expecting value (character 1)"
    assert re.fullmatch(r"30 of 30 done, 1 failed, 638 tokens in \d+\.\d s \(\d+\.\d t/s\)", line)
    assert person.screen.cursor == (0, 2)
    assert not person.screen.cursor_hidden


def test_batch_bar_truncates_no_number_in_a_narrow_window(start: OpenTerminal, tmp_path: Path) -> None:
    arguments = [argument if argument != "out" else "-" for argument in rows(tmp_path)]
    person = start(QUICK, *arguments, size=(30, 8), after="> answers")
    person.wait_for("/40 1 failed 0:0")
    assert len(person.screen.lines) == 1
    assert person.end() == 6
    assert "…" not in person.output
    assert " ".join(person.screen.lines).startswith("40 of 40 done, 1 failed, 858")
    assert [json.loads(line)["id"] for line in (tmp_path / "answers").read_text().splitlines()] == list(range(1, 41))


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (34, r" ?\d+/40 accuracy 0\.\d{3} \d:\d\d left"),
        (110, r" ?\d+/40 ━\S* accuracy 0\.\d{3} \(0.\d{3} to \d.\d{3}\), \d+% no answer .*\d:\d\d left"),
    ],
)
def test_evaluation_bar_shows_what_fits(start: OpenTerminal, tmp_path: Path, columns: int, text: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"question": "q", "answer": 5}\n' * 40)
    script = {"seeds": ["the answer is 5.", "a reply of some length"], "pause": 0.001}
    person = start(script, "eval", "in.jsonl", "--samples", "2", "--parallel", "4", size=(columns, 30))
    person.wait_for("accuracy 0.")
    person.wait_for(" left")
    assert re.fullmatch(text, person.screen.lines[0])
    assert person.end() == 0
    assert "…" not in person.output


def test_narrow_comparison_names_both_runs(open_terminal: OpenTerminal, new_user: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"question": "What is 3 plus 4?", "answer": 7}\n')
    for run in ("eight-bit.jsonl", "four-bit.jsonl"):
        assert new_user.run("eval", tmp_path / "in.jsonl", "-m", MODEL_FILE, "-o", tmp_path / run).code == 0
    argv = (sys.executable, "-m", "cerebrum_cli", "runs", "compare", "eight-bit.jsonl", "four-bit.jsonl")
    person = open_terminal(*argv, size=(44, 24))
    assert person.end() == 0
    assert "accuracy of eight-bit" in person.screen.lines[1] and "accuracy of four-bit" in person.screen.lines[2]
    verdict = "no significant difference: 1 question is too few to detect any"
    assert verdict.split() == " ".join(person.screen.lines[-2:]).split()


def test_notice_erases_the_bar_of_an_evaluation(start: OpenTerminal, tmp_path: Path) -> None:
    questions = ["q", "too long " * 40, "r"]
    rows = (json.dumps({"question": question, "answer": 5}) + "\n" for question in questions)
    (tmp_path / "in.jsonl").write_text("".join(rows))
    person = start({**QUICK, "context": 200}, "eval", "in.jsonl")
    assert person.end() == 6
    assert person.screen.lines[0].startswith("note: question 2 skipped: the prompt has ")
    assert any(line.startswith("3 of 3 questions done, accuracy 0.000 (") for line in person.screen.lines)


def test_batch_answers_streamed_to_a_terminal_have_no_bar(start: OpenTerminal, tmp_path: Path) -> None:
    arguments = [argument if argument != "out" else "-" for argument in rows(tmp_path, 12)]
    person = start(INSTANT, *arguments)
    assert person.end() == 6
    output = person.output.rpartition("\r\x1b[K")[2]  # after a slow load's status line
    assert "\x1b" not in output
    *answers, last, _ = output.splitlines()
    assert [json.loads(line)["id"] for line in answers] == list(range(1, 13))
    assert last.startswith("12 of 12 done, 1 failed, ")


def test_batch_on_a_dumb_terminal_prints_one_line(start: OpenTerminal, tmp_path: Path) -> None:
    person = start({**INSTANT, "load": 0.1}, *rows(tmp_path, 9), TERM="dumb")
    assert person.end() == 6
    assert "\x1b" not in person.output
    assert "\r" not in person.output.replace("\r\n", "")
    assert len(person.screen.lines) == 2


def test_batch_reasoning_does_not_overwrite_the_bar(start: OpenTerminal, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("p\nq\n")
    script = {"seeds": ["<think>" + "hm " * 20 + "</think>yes"], "pause": 0.0025}
    person = start(script, "batch", "in.txt", "-o", "out")
    person.wait_for("0/2 ━")
    assert person.end() == 0
    assert "reasoning" not in person.output


def test_batch_ctrl_c_erases_the_bar_and_prints_how_to_resume(start: OpenTerminal, tmp_path: Path) -> None:
    person = start(REPLY, *rows(tmp_path))
    person.wait_for("/40 ━")
    for _ in range(1000):
        if (tmp_path / "out.partial").stat().st_size:
            break
        time.sleep(0.01)
    person.type("\x03")
    assert person.end() == 130
    partial = (tmp_path / "out.partial").read_text().splitlines()
    *_, what, do = person.screen.lines
    assert what == "error: interrupted"
    assert do == f" hint: {len(partial)} of 40 rows done; run it again to resume"
    assert 0 < len(partial) < 40
    assert not person.screen.cursor_hidden
    assert not any("━" in line for line in person.screen.lines)


def test_batch_ctrl_c_during_loading_leaves_no_files(start: OpenTerminal, tmp_path: Path) -> None:
    person = start({**REPLY, "load": 20}, *rows(tmp_path))
    person.wait_for("loading chatml 50%")
    person.type("\x03")
    assert person.end() == 130
    assert " hint: 0 of 40 rows done; run it again to resume" in person.screen.lines
    assert not list(tmp_path.glob("out*"))


# A vote.


def test_vote_shows_its_tally_and_then_the_winning_sample(start: OpenTerminal) -> None:
    person = start({"seeds": SAMPLES, "pause": 0.002}, "ask", "q", "--votes", "5", "--seed", "0")
    person.wait_for("no answer yet (0 of ")
    person.wait_for("日本語の答え x1 (1 of ")
    person.wait_for("日本語の答え x2 · 5 x1 (3 of ")
    assert len(person.screen.lines) == 1
    assert person.end() == 0
    assert person.screen.lines == [
        "Well, the answer is 日本語の答え.",
        "日本語の答え: 3 of 4 votes (75%); runner-up 5: 1",
    ]


def test_vote_tally_fits_one_line_of_a_narrow_window(start: OpenTerminal) -> None:
    script = {"seeds": SAMPLES, "pause": 0.001}
    person = start(script, "ask", "q", "--votes", "5", "--seed", "0", size=(20, 8))
    person.wait_for("日本語の答え x2")
    assert len(person.screen.lines) == 1
    drawn = re.findall(r"\r\x1b\[K([^\r\n\x1b]+)", person.output)
    assert drawn
    assert max(map(cell_len, drawn)) < 20 - len("^C")
    assert person.end() == 0


def test_vote_draws_nothing_for_a_screen_reader(start: OpenTerminal) -> None:
    arguments = ("ask", "q", "--votes", "3", "--final", "--seed", "0")
    person = start({"seeds": SAMPLES, "load": 0.1, "pause": 0.0}, *arguments, ACCESSIBLE="1")
    assert person.end() == 0
    assert person.output == "日本語の答え\r\n日本語の答え: 2 of 2 votes (100%)\r\n"


def test_vote_ctrl_c_shows_the_leading_answer(start: OpenTerminal) -> None:
    script = {"seeds": [SAMPLES[0], *["y" * 2000] * 4], "pause": 0.0025}
    person = start(script, "ask", "q", "--votes", "5", "--seed", "0")
    person.wait_for("日本語の答え x1 (1 of ")
    person.type("\x03")
    assert person.end() == 130
    assert person.screen.lines == [
        "The answer is 日本語の答え.",
        "日本語の答え: 1 of 1 votes (100%)",
        "interrupted; the answer so far is saved, and cerebrum ask -c continues from it",
    ]
    assert "Traceback" not in person.output


def test_vote_ctrl_c_before_any_sample_finishes_shows_nothing(start: OpenTerminal) -> None:
    person = start({"seeds": ["y" * 2000], "pause": 0.01}, "ask", "q", "--votes", "3")
    person.wait_for("no answer yet (0 of ")
    person.type("\x03")
    assert person.end() == 130
    assert [line for line in person.screen.lines if line != "^C"] == []
