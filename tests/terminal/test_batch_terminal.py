"""Progress of batches, evaluations and votes at a real terminal, which is erased at the end."""

import json
import re
import time
from io import StringIO
from pathlib import Path

import pytest
from person import OpenTerminal
from row_files import stored_lines
from waiting import wait_until

from cerebrum_cli.core.events import PromptEvent, SequenceId, TokenEvent
from cerebrum_cli.core.row_events import RowCounts, RowEvent
from cerebrum_cli.terminal.progress import BatchProgress, seconds_left
from cerebrum_cli.terminal.streams import Streams

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SCRIPT = {"rows": {}, "seeds": ["a reply of some length"]}


def batch(home: Path, count: int, output: str = "out") -> tuple[str, ...]:
    """Arguments of a batch with one invalid row."""
    (home / "in.jsonl").write_text("nonsense\n" + '{"prompt": "q"}\n' * (count - 1))
    return "batch", "in.jsonl", "-o", output, "--parallel", "4"


def test_batch_bar_shows_progress_and_is_erased(open_scripted: OpenTerminal, tmp_path: Path) -> None:
    person = open_scripted({**SCRIPT, "load": 0.4, "pause": 0.006}, *batch(tmp_path, 30))
    person.wait_for_output("loading chatml 50%")
    for shown in ("/30 ", "left 1 failed", "━"):
        person.wait_for(shown)
    assert len(person.screen.lines) == 1
    assert person.end() == 6
    line, error = person.screen.lines
    assert error == "  line 1: not JSON: Expecting value (character 1)"
    assert re.fullmatch(r"30 of 30 done, 1 failed, 638 tokens in \d+\.\d s \(\d+\.\d t/s\)", line)
    assert person.screen.cursor == (0, 2)
    assert not person.screen.cursor_hidden


def test_batch_answers_on_a_terminal_have_no_bar(open_scripted: OpenTerminal, tmp_path: Path) -> None:
    person = open_scripted(SCRIPT, *batch(tmp_path, 12, output="-"))
    assert person.end() == 6
    output = person.output.rpartition("\x1b[2K")[2]  # after a slow load's status line
    assert "\x1b" not in output
    *answers, last, _ = output.splitlines()
    assert [json.loads(line)["id"] for line in answers] == list(range(1, 13))
    assert last.startswith("12 of 12 done, 1 failed, ")


def test_batch_ctrl_c_prints_how_to_resume(open_scripted: OpenTerminal, tmp_path: Path) -> None:
    person = open_scripted({**SCRIPT, "pause": 0.002}, *batch(tmp_path, 40))
    person.wait_for("━")
    wait_until(lambda: bool(stored_lines(tmp_path / "out.partial")))
    person.type("\x03")
    assert person.end() == 130
    partial = stored_lines(tmp_path / "out.partial")
    assert 0 < len(partial) < 40
    *_, summary, _, what, do = person.screen.lines
    assert summary.startswith(f"{len(partial)} of 40 done, 1 failed")
    assert what == "error: interrupted"
    assert do == f" hint: {len(partial)} of 40 rows done, saved in out.partial; run it again to resume"
    assert not person.screen.cursor_hidden
    assert not any("━" in line for line in person.screen.lines)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_batch_rate_leaves_out_the_time_after_the_last_row(now: list[float]) -> None:
    err, one = StringIO(), SequenceId(0)
    progress = BatchProgress(Streams(StringIO(), err, None, False, False, False), draws=False)
    for event in (PromptEvent(one, 0, 1), TokenEvent(one, "", tokens=(1,) * 40), RowEvent(1, 1, RowCounts())):
        progress.emit(event)
        now[0] += 2  # the last time until Ray has stopped
    progress.close()
    assert "40 tokens in 4.0 s (10.0 t/s)" in err.getvalue()


def test_rows_without_tokens_have_a_speed(now: list[float]) -> None:
    err = StringIO()
    progress = BatchProgress(Streams(StringIO(), err, None, False, False, False), draws=False)
    for done in (20, 25, 30):  # an earlier run has done 20 of them
        progress.emit(RowEvent(done, 100, RowCounts(), earlier=20))
        now[0] += 2
    now[0] -= 2
    assert "".join(text for text, _ in progress.render(80)).startswith(" 30/100 0:28 left 2.5 rows/s ━")
    progress.close()
    assert err.getvalue() == "30 of 100 done (20 by an earlier run), 2.5 rows/s\n"


def test_batch_estimates_the_time_left_with_rows_that_run() -> None:
    """The first of 20 rows that began together takes 30 seconds: half of what the others need is done."""
    assert seconds_left(30.0, done=1, running=19, remaining=19) == pytest.approx(27.1, abs=0.1)
    assert seconds_left(30.0, done=10, running=0, remaining=20) == 60.0


SAMPLES = [
    "The answer is 日本語の答え.",
    "Well, the answer is 日本語の答え.",
    "So it is, and after that much the answer is 5.",
    "語" * 40 + " The answer is 日本語の答え.",
    "y" * 100,
]
VOTE = ("ask", "q", "--votes", "5", "--seed", "0")


def test_vote_shows_its_tally_and_then_the_winning_sample(open_scripted: OpenTerminal) -> None:
    person = open_scripted({"rows": {}, "seeds": SAMPLES, "pause": 0.005}, *VOTE)
    for shown in ("no answer yet (0 of ", "日本語の答え x1 (1 of ", "日本語の答え x2 · 5 x1 (3 of "):
        person.wait_for_output(shown)
    assert len(person.screen.lines) == 1
    assert person.end() == 0
    assert person.screen.lines == [
        "The answer is 日本語の答え.",
        "日本語の答え: 3 of 4 votes (75%), decided early of 5; runner-up 5: 1",
    ]


def test_vote_ctrl_c_shows_the_leading_answer(open_scripted: OpenTerminal) -> None:
    person = open_scripted({"rows": {}, "seeds": [SAMPLES[0], *["y" * 2000] * 4], "pause": 0.005}, *VOTE)
    person.wait_for("日本語の答え x1 (1 of ")
    person.type("\x03")
    assert person.end() == 130
    assert person.screen.lines == [
        "The answer is 日本語の答え.",
        "日本語の答え: 1 of 1 votes (100%)",
        "interrupted; the leading answer is saved",
    ]
    assert "Traceback" not in person.output
