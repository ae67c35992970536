"""The model that ships with cerebrum: its replies end, follow up and are mostly right; votes improve on them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from nano.measure import FILE, asked, opened, voted
from nano.questions import held_out, questions

from cerebrum_cli.answers.extract import final_answer
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.engine.engine import Engine

pytestmark = pytest.mark.slow

SHA256 = "938b12ac45814c11d06152ed2cf7116cc51a1a9816fea7b004d0cedc23147e1d"
EOS = 2
QUESTION = "What is 3 plus 4?"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine with nano, in eight slots."""
    with opened(FILE) as engine:
        yield engine


def ask(home: Path, *arguments: str | Path) -> Any:
    """The JSON that a question to nano prints."""
    done = CommandLine(home).run("ask", "-m", FILE, "--format", "cerebrum", "--json", *arguments)
    assert done.code == 0, done.err
    return done.object


def test_nano_file_is_the_measured_one() -> None:
    data = FILE.read_bytes()
    assert 2_000_000 < len(data) < 6_000_000
    assert hashlib.sha256(data).hexdigest() == SHA256


def test_nano_reply_ends_without_the_end_token(tmp_path: Path) -> None:
    reply = ask(tmp_path, QUESTION)
    assert reply["text"] == "3 plus 4 makes 7. The answer is 7."
    assert (reply["final_answer"], reply["finish_reason"]) == ("7", "stop")
    prompt = ask(tmp_path, "--dry-run", QUESTION)["token_ids"]
    next_prompt = ask(tmp_path, "-c", "--dry-run", "Double it.")["token_ids"]
    assert next_prompt[: len(prompt)] == prompt
    assert EOS not in next_prompt


def test_nano_follows_up_on_the_previous_answer(tmp_path: Path) -> None:
    ask(tmp_path, QUESTION)
    doubled = ask(tmp_path, "-c", "Double it.")
    assert (doubled["final_answer"], doubled["finish_reason"]) == ("14", "stop")
    more = ask(tmp_path, "-c", "And if you add 5 to that?")
    assert (more["final_answer"], more["finish_reason"]) == ("19", "stop")


def test_nano_template_matches_the_training_format(tmp_path: Path) -> None:
    messages = tmp_path / "messages.json"
    messages.write_text(
        '[{"role": "user", "content": "What is 3 plus 4?"}, {"role": "assistant", "content": "3 plus 4 makes 7."},'
        ' {"role": "user", "content": "Double it."}]',
        encoding="utf-8",
    )
    plain, embedded = (
        CommandLine(tmp_path).run("ask", "-m", FILE, "--format", name, "--dry-run", "--json", "--messages", messages)
        for name in ("cerebrum", "embedded")
    )
    assert plain.object["token_ids"] == embedded.object["token_ids"]


def test_nano_greedy_answers_are_mostly_right(engine: Engine) -> None:
    wanted = held_out()[:60]
    chains = [said for [said] in asked(engine, [Conversation().user(turns[0]) for turns, _ in wanted])]
    right = [final_answer(chain.text) == answer for chain, (_, answer) in zip(chains, wanted, strict=True)]
    assert sum(right) >= 0.85 * len(right)
    assert all(chain.ended for chain in chains)


def test_nano_majority_beats_single_samples(engine: Engine) -> None:
    wanted = held_out()[:40]
    drawn = asked(engine, [Conversation().user(turns[0]) for turns, _ in wanted], n=8, temperature=0.8, seed=1)
    right = [answer for _, answer in wanted]
    single = [final_answer(c.text) == answer for chains, answer in zip(drawn, right, strict=True) for c in chains]
    majority = [voted(chains) == answer for chains, answer in zip(drawn, right, strict=True)]
    assert 0.5 <= sum(single) / len(single) <= 0.8
    assert sum(majority) / len(majority) >= sum(single) / len(single) + 0.1


def test_nano_stays_within_its_vocabulary_on_unusual_questions(engine: Engine) -> None:
    strange = ["What is the capital of France?", "Wie spät ist es?", "def f(x): return x", "Hello!", "2", "東京"]
    conversations = [Conversation().user(text) for text in (*strange, QUESTION)]
    for temperature in (0.0, 0.8):
        drawn = asked(engine, conversations, temperature=temperature, seed=3, top_k=0, top_p=1.0, min_p=0.0)
        for [said] in drawn:
            assert said.ended
            assert re.fullmatch(r"[ \w.,]+", said.text, re.ASCII)


def test_nano_held_out_questions_are_unchanged() -> None:
    asked_for = held_out()
    assert len(dict(asked_for)) == 200
    assert all(len(turns) == 1 and 0 <= int(answer) <= 99 for turns, answer in asked_for)
    digest = hashlib.sha256(repr(asked_for).encode()).hexdigest()
    assert digest[:16] == "837cb656acd29bb8"
    assert all(len(turns) == 2 for turns, _ in questions(1, 20, turns=2))
