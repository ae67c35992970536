"""The model that ships with cerebrum: its replies end and follow up. And one that reasons."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from scripts.nano.measure import MODEL_FILE
from scripts.nano.questions import held_out

pytestmark = pytest.mark.slow

SHA256 = "938b12ac45814c11d06152ed2cf7116cc51a1a9816fea7b004d0cedc23147e1d"
THINKER_SHA256 = "606a02076f4344b0202983a9d830df38bbd791b477269e3ca297c043a19bed2b"
EOS = 2
QUESTION = "What is 3 plus 4?"


def ask(home: Path, *arguments: str | Path, model: Path = MODEL_FILE) -> Any:
    done = CommandLine(home).run("ask", "-m", model, "--json", *arguments)
    assert done.code == 0, done.err
    return done.object


def test_nano_and_its_questions_are_the_measured_ones() -> None:
    data = MODEL_FILE.read_bytes()
    assert 2_000_000 < len(data) < 6_000_000
    assert hashlib.sha256(data).hexdigest() == SHA256
    assert hashlib.sha256(repr(held_out()).encode()).hexdigest().startswith("837cb656acd29bb8")


def test_nano_follows_up_on_replies_that_end_without_the_end_token(tmp_path: Path) -> None:
    reply = ask(tmp_path, QUESTION)
    assert reply["text"] == "3 plus 4 makes 7. The answer is 7."
    assert (reply["final_answer"], reply["finish_reason"]) == ("7", "stop")
    prompt = ask(tmp_path, "--dry-run", QUESTION)["token_ids"]
    next_prompt = ask(tmp_path, "-c", "--dry-run", "Double it.")["token_ids"]
    assert next_prompt[: len(prompt)] == prompt and EOS not in next_prompt
    for question, answer in (("Double it.", "14"), ("And if you add 5 to that?", "19")):
        reply = ask(tmp_path, "-c", question)
        assert (reply["final_answer"], reply["finish_reason"]) == (answer, "stop")


def test_thinker_reasons_before_it_answers(tmp_path: Path, thinker: Path) -> None:
    assert hashlib.sha256(thinker.read_bytes()).hexdigest() == THINKER_SHA256
    reply = ask(tmp_path, "What is 17 plus 25?", model=thinker)
    assert "17 plus 20 makes 37.\n37 plus 5 makes 42." in reply["reasoning"]
    assert (reply["text"], reply["finish_reason"]) == ("The answer is 42.", "stop")
    assert ask(tmp_path, "-c", "Double it. Answer in JSON.", model=thinker)["text"] == '{"answer": 84}'
