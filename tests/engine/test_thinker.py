"""The model of the tests that reasons: it thinks before it answers, is mostly right, and worse without thinking."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from nano.questions import held_out

pytestmark = pytest.mark.slow

SHA256 = "606a02076f4344b0202983a9d830df38bbd791b477269e3ca297c043a19bed2b"


def ask(home: Path, model: Path, *arguments: str) -> Any:
    """The JSON that a question to the thinker prints."""
    done = CommandLine(home).run("ask", "-m", model, "--json", *arguments)
    assert done.code == 0, done.err
    return done.object


def count_right(folder: Path, model: Path, *options: str) -> int:
    """Number of right answers to forty held-out sums."""
    rows, out = folder / f"sums{len(options)}.jsonl", folder / f"answers{len(options)}.jsonl"
    rows.write_text("".join(json.dumps({"prompt": turns[0]}) + "\n" for turns, _ in held_out()[:40]))
    done = CommandLine(folder).run("batch", rows, "-o", out, "-m", model, "--parallel", "8", *options)
    assert done.code == 0, done.err
    answers = [json.loads(line)["final_answer"] for line in out.read_text().splitlines()]
    return sum(answer == right for answer, (_, right) in zip(answers, held_out(), strict=False))


def test_thinker_is_the_measured_one(thinker: Path) -> None:
    assert hashlib.sha256(thinker.read_bytes()).hexdigest() == SHA256


def test_thinker_reasons_before_it_answers(tmp_path: Path, thinker: Path) -> None:
    reply = ask(tmp_path, thinker, "What is 17 plus 25?")
    assert "17 plus 20 makes 37.\n37 plus 5 makes 42." in reply["reasoning"]
    assert (reply["text"], reply["finish_reason"]) == ("The answer is 42.", "stop")
    assert ask(tmp_path, thinker, "-c", "Double it. Answer in JSON.")["text"] == '{"answer": 84}'


def test_thinker_is_worse_without_reasoning(tmp_path: Path, thinker: Path) -> None:
    assert count_right(tmp_path, thinker) >= 38
    assert 20 <= count_right(tmp_path, thinker, "--think", "off") <= 36
