"""`--check python`: each sample of a vote is asked for a program, whose output votes, too."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import Finished, assert_error
from scripted_command import run_here, start_scripted
from waiting import user_seconds, wait_for_end, wait_until

from cerebrum_cli.replies import checking

BETWEEN = f"<|im_end|>\n<|im_start|>user\n{checking.QUESTION}"


def program(code: str) -> str:
    return f"```python\n{code}\n```"


def answer(number: int) -> str:
    return f"The answer is {number}."


# Four samples: 5, whose program fails; 4, to which its program comes; 5 again; and 7, whose program comes to 4.
REPLIES = [answer(5), answer(4), answer(5), answer(7)]
PROGRAMS = {answer(5): program("print("), answer(4): program("print(2 + 2)"), answer(7): program("print(2 + 2)")}


def run(
    home: Path,
    model: Path,
    *arguments: str,
    replies: list[str] = REPLIES,
    programs: dict[str, str] = PROGRAMS,
    command: str = "ask",
) -> Finished:
    rows = {f"{reply}{BETWEEN}": text for reply, text in programs.items()}
    script: dict[str, Any] = {"rows": rows, "seeds": replies}
    return run_here(script, home, command, "-m", model, "--seed", "0", "--check", "python", *arguments)


def test_program_that_prints_true_agrees_with_yes(tmp_path: Path, chatml_model: Path) -> None:
    replies = ["Yes, it is.", "No, it is 7."]
    programs = dict.fromkeys(replies, program("print(7 % 2 > 0)"))
    arguments = "Is 7 odd?", "--votes", "2", "--json"
    done = run(tmp_path, chatml_model, *arguments, replies=replies, programs=programs)
    assert [sample["checked"] for sample in done.object["votes"]["samples"]] == [True, False]
    assert done.object["final_answer"] == "yes"


def test_check_prefers_an_answer_that_programs_come_to(tmp_path: Path, chatml_model: Path) -> None:
    done = run(tmp_path, chatml_model, "q", "--votes", "4", "--json", "-q")
    votes = done.object["votes"]
    assert (done.code, votes["winner"], votes["checked"], votes["agreement"]) == (0, "4", True, 0.5)
    assert [(each["answer"], each["count"], each["replies"], each["programs"]) for each in votes["tally"]] == [
        *(("4", 2, 1, 2), ("5", 2, 2, 0), ("7", 1, 1, 0)),
    ]
    assert [(sample["final_answer"], sample["program_output"], sample["checked"]) for sample in votes["samples"]] == [
        *(("5", None, False), ("4", "4", True), ("5", None, False), ("7", "4", False)),
    ]
    assert [sample["program"].strip() for sample in votes["samples"]] == ["print(", "print(2 + 2)"] * 2
    assert votes["samples"][1]["program_tokens"] == len(program("print(2 + 2)"))
    assert done.object["text"] == answer(4)
    assert done.object["completion_tokens"] == len(answer(4))


def test_check_without_an_agreeing_program_is_a_plain_majority(tmp_path: Path, chatml_model: Path) -> None:
    programs = dict.fromkeys(PROGRAMS, program("print("))
    done = run(tmp_path, chatml_model, "q", "--votes", "4", "--final", programs=programs)
    assert (done.code, done.out) == (0, "5\n")
    assert "no reply and program agree on an answer, so the winner is not checked" in done.err


def test_check_shows_the_program_that_wins_alone(tmp_path: Path, chatml_model: Path) -> None:
    programs = dict.fromkeys(PROGRAMS, program("print(2 + 2)"))
    replies = [answer(5), answer(7), answer(7), answer(5)]
    done = run(tmp_path, chatml_model, "q", "--votes", "4", replies=replies, programs=programs)
    assert (done.code, done.out.split("\n")) == (
        *(0, [answer(5), "", *program("print(2 + 2)").split("\n"), "", "4", ""]),
    )
    assert "the winner is not checked" in done.err
    done = run(tmp_path, chatml_model, "q", "--votes", "4", "--json", "-q", replies=replies, programs=programs)
    assert (done.object["text"], done.object["final_answer"]) == (answer(5), "4")


def test_check_prints_the_last_line_of_a_program(tmp_path: Path, chatml_model: Path) -> None:
    programs = {answer(7): program("print('so:'); print(7.0)")}
    done = run(tmp_path, chatml_model, "q", "--votes", "2", "--final", replies=[answer(7)] * 2, programs=programs)
    assert (done.code, done.out) == (0, "7\n")


def test_check_of_a_truncated_sample_is_not_asked_for(tmp_path: Path, chatml_model: Path) -> None:
    done = run(tmp_path, chatml_model, "q", "--votes", "2", "-n", "8", "--json", "-q", replies=[answer(4)])
    assert [(sample["finish_reason"], sample["program"]) for sample in done.object["votes"]["samples"]] == [
        ("length", None)
    ] * 2


def test_check_of_a_batch_writes_the_programs(tmp_path: Path, chatml_model: Path) -> None:
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    done = run(tmp_path, chatml_model, str(tmp_path / "in.txt"), "-o", "-", "--votes", "4", "-q", command="batch")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["final_answer"] for row in rows] == ["4", "4"]
    spent = sum(map(len, REPLIES)) + sum(len(PROGRAMS[reply]) for reply in REPLIES)
    assert [row["completion_tokens"] for row in rows] == [spent] * 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("q",), "--check needs --votes"),
        (("q", "--votes", "2", "--check", "perl"), "invalid --check: 'perl'"),
    ],
)
def test_check_refuses_what_it_cannot_do(
    tmp_path: Path, chatml_model: Path, arguments: tuple[str, ...], part: str
) -> None:
    assert_error(run(tmp_path, chatml_model, *arguments), 2, part)


def test_check_counts_programs_that_monty_does_not_support(tmp_path: Path, chatml_model: Path) -> None:
    codes = {answer(4): "print(2 + 2)", answer(5): "import fractions\nprint(5)", answer(7): "1 / 0"}
    programs = {reply: program(code) for reply, code in codes.items()}
    done = run(tmp_path, chatml_model, "q", "--votes", "4", "--json", programs=programs)
    votes = done.object["votes"]
    assert (done.code, votes["winner"], votes["checked"]) == (0, "4", True)
    assert [sample.get("program_unsupported") for sample in votes["samples"]] == [True, None, True, None]
    assert [sample["program_output"] for sample in votes["samples"]] == [None, "4", None, None]
    done = run(tmp_path, chatml_model, "q", "--votes", "4", "--stats", programs=programs)
    result = "4: 1 reply and 1 program of 4 samples; runner-up 5: 2 replies and 0 programs"
    assert f"{result}; 2 programs not supported by Monty\n" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_check_ends_with_its_command(tmp_path: Path, chatml_model: Path, signum: signal.Signals, code: int) -> None:
    """A program that would run for five seconds ends at once, and is not counted as one that failed."""
    script = {"rows": {f"{answer(4)}{BETWEEN}": program("while True: pass")}, "seeds": [answer(4)]}
    options = ("--votes", "2", "--check", "python", "--json", "-m", str(chatml_model))
    with start_scripted(script, tmp_path, "ask", "q", *options) as process:
        parent = psutil.Process(process.pid)
        wait_until(lambda: any(user_seconds(child) > 0.3 for child in parent.children(recursive=True)))
        running = parent.children(recursive=True)
        started = time.monotonic()
        process.send_signal(signum)
        out, _ = process.communicate(timeout=10)
        assert (process.returncode, out) == (code, b"")
        assert time.monotonic() - started < 2
    wait_for_end(running)
