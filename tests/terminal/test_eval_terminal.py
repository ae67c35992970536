"""`cerebrum eval` at a real terminal: its line of progress, Ctrl-C, and the report."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_files import complete_lines, without_position
from command_line import COMMAND
from nano.measure import MODEL_FILE
from nano.questions import held_out
from person import OpenTerminal, Person

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

QUESTIONS, SAMPLES = 40, 8
TOTAL = QUESTIONS * SAMPLES
Start = Callable[[int], Person]

ACCURACY, INTERVAL, BAR, LEFT = r"accuracy \d\.\d{3}", r"\(\d\.\d{3} to \d\.\d{3}\)", "[━╸╺]{8,}", r"\d+:\d\d left"


@pytest.fixture
def start(open_terminal: OpenTerminal, tmp_path: Path) -> Start:
    """A function that evaluates nano on its held-out sums in a terminal with a number of columns."""
    rows = [{"question": turns[0], "answer": answer} for turns, answer in held_out()[:QUESTIONS]]
    (tmp_path / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    options = ("-m", MODEL_FILE, "--format", "cerebrum", "--samples", str(SAMPLES), "-o", "run.jsonl")
    return lambda columns: open_terminal(COMMAND, "eval", "sums.jsonl", *options, size=(columns, 24))


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (120, f"({BAR} )?{ACCURACY} {INTERVAL}, .*{LEFT}"),
        (80, rf"({BAR} )?{ACCURACY} {INTERVAL}(, \d+% no answer)?.* {LEFT}"),
        (44, f"({BAR} )?{ACCURACY} {LEFT}"),
        (24, LEFT),
    ],
)
def test_eval_line_drops_the_least_important_first(start: Start, columns: int, shown: str) -> None:
    person = start(columns)
    person.wait_for(" left" if columns == 24 else "accuracy 0.")
    [line] = person.screen.lines
    assert re.fullmatch(rf" *\d+/{QUESTIONS} {shown}", line), line
    assert len(line) <= columns - len("^C")


def test_eval_ctrl_c_keeps_samples_and_resumes(start: Start, tmp_path: Path) -> None:
    columns = 44
    person = start(columns)
    person.wait_for(f"/{QUESTIONS} ")
    person.wait_for("accuracy 0.")
    person.type("\x03")
    assert person.end() == 130
    saved = complete_lines(tmp_path / "run.jsonl.partial")
    assert 0 < len(saved) < TOTAL
    taken = Counter(json.loads(line)["id"] for line in saved)
    finished = list(taken.values()).count(SAMPLES)
    text = "".join("".join(person.screen.lines).split())  # where lines wrap depends on the window
    assert f"{finished}of{QUESTIONS}questionsdone,accuracy0." in text
    assert text.endswith(f"error:interruptedhint:{len(saved)}of{TOTAL}samplesdone;runitagaintoresume")
    assert "━" not in text
    assert not person.screen.cursor_hidden
    person = start(columns)
    person.wait_for(" left")
    assert re.findall(rf"(\d+)/{QUESTIONS}", person.output)[0] == str(finished)
    assert person.end() == 0
    assert set(map(without_position, saved)) <= set(complete_lines(tmp_path / "run.jsonl"))
    assert re.search(r"\naccuracy +0\.\d{3}  0\.\d{3} to 0\.\d{3}\nmaj@2 ", "\n".join(person.screen.lines))
    assert person.screen.lines[-1] == "run run: run.jsonl"
    assert max(map(len, person.screen.lines)) <= columns
