"""The model that ships with cerebrum: its replies end, follow up and are mostly right; votes improve on them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import collect_replies
from command_line import CommandLine
from llama_engines import open_engine
from nano.measure import MODEL_FILE, generate, loaded_engine, majority_answer
from nano.questions import held_out

from cerebrum_cli.answers.extract import final_answer
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.engine.step_costs import DEFAULT_COSTS
from cerebrum_cli.formats.plain import CEREBRUM

pytestmark = pytest.mark.slow

SHA256 = "938b12ac45814c11d06152ed2cf7116cc51a1a9816fea7b004d0cedc23147e1d"
EOS = 2
QUESTION = "What is 3 plus 4?"


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    """An engine with nano, in eight slots."""
    with loaded_engine(MODEL_FILE) as engine:
        yield engine


def ask(home: Path, *arguments: str | Path) -> Any:
    """The JSON that a question to nano prints."""
    done = CommandLine(home).run("ask", "-m", MODEL_FILE, "--format", "cerebrum", "--json", *arguments)
    assert done.code == 0, done.err
    return done.object


def test_nano_and_its_questions_are_the_measured_ones() -> None:
    data = MODEL_FILE.read_bytes()
    assert 2_000_000 < len(data) < 6_000_000
    assert hashlib.sha256(data).hexdigest() == SHA256
    assert hashlib.sha256(repr(held_out()).encode()).hexdigest().startswith("837cb656acd29bb8")


def test_nano_reply_ends_without_the_end_token(tmp_path: Path) -> None:
    reply = ask(tmp_path, QUESTION)
    assert reply["text"] == "3 plus 4 makes 7. The answer is 7."
    assert (reply["final_answer"], reply["finish_reason"]) == ("7", "stop")
    prompt = ask(tmp_path, "--dry-run", QUESTION)["token_ids"]
    next_prompt = ask(tmp_path, "-c", "--dry-run", "Double it.")["token_ids"]
    assert next_prompt[: len(prompt)] == prompt
    assert EOS not in next_prompt


def test_nano_drafts_change_no_reply() -> None:
    """Nano repeats itself only after the end of its replies, which is ignored here."""
    params, accepted = SamplingParams(max_tokens=400), 0
    with open_engine(MODEL_FILE, is_invariant=True) as engine:
        for question in (QUESTION, "Double it.", "Say it again: 3 plus 4 makes 7. Then 7 plus 5 makes 12."):
            prompt = engine.vocabulary.tokenize(CEREBRUM.render(Conversation().user(question)))
            requests = (Request(prompt, params, ignore_eos=True, step_costs=costs) for costs in (None, DEFAULT_COSTS))
            (plain,), (drafted,) = (collect_replies(engine.generate([each])).values() for each in requests)
            assert drafted.ids == plain.ids
            assert plain.finish and plain.finish.timings.draft_n == 0
            accepted += drafted.finish.timings.draft_n_accepted if drafted.finish else 0
    assert accepted > 50


def test_nano_follows_up_on_the_previous_answer(tmp_path: Path) -> None:
    ask(tmp_path, QUESTION)
    doubled = ask(tmp_path, "-c", "Double it.")
    assert (doubled["final_answer"], doubled["finish_reason"]) == ("14", "stop")
    more = ask(tmp_path, "-c", "And if you add 5 to that?")
    assert (more["final_answer"], more["finish_reason"]) == ("19", "stop")


def test_nano_template_matches_the_training_format(tmp_path: Path) -> None:
    messages = tmp_path / "messages.json"
    turns = (("user", QUESTION), ("assistant", "3 plus 4 makes 7."), ("user", "Double it."))
    messages.write_text(json.dumps([{"role": role, "content": content} for role, content in turns]))
    arguments = ("--dry-run", "--messages", messages)
    plain, embedded = (ask(tmp_path, *arguments, "--format", name)["token_ids"] for name in ("cerebrum", "embedded"))
    assert plain == embedded


def test_nano_greedy_answers_are_mostly_right(engine: LocalEngine) -> None:
    problems = held_out()[:60]
    samples = [sample for [sample] in generate(engine, [Conversation().user(turns[0]) for turns, _ in problems])]
    right = [final_answer(sample.text) == answer for sample, (_, answer) in zip(samples, problems, strict=True)]
    assert sum(right) >= 0.85 * len(right)
    assert all(sample.ended for sample in samples)


def test_nano_majority_beats_single_samples(engine: LocalEngine) -> None:
    problems = held_out()[:40]
    sampled = generate(engine, [Conversation().user(turns[0]) for turns, _ in problems], n=8, temperature=0.8, seed=1)
    right = [answer for _, answer in problems]
    single = [
        final_answer(sample.text) == answer
        for samples, answer in zip(sampled, right, strict=True)
        for sample in samples
    ]
    majority = [majority_answer(samples) == answer for samples, answer in zip(sampled, right, strict=True)]
    assert 0.5 <= sum(single) / len(single) <= 0.8
    assert sum(majority) / len(majority) >= sum(single) / len(single) + 0.1


def test_nano_stays_within_its_vocabulary_on_unusual_questions(engine: LocalEngine) -> None:
    strange = ["What is the capital of France?", "Wie spät ist es?", "def f(x): return x", "Hello!", "2", "東京"]
    conversations = [Conversation().user(text) for text in (*strange, QUESTION)]
    for temperature in (0.0, 0.8):
        sampled = generate(engine, conversations, temperature=temperature, seed=3, top_k=0, top_p=1.0, min_p=0.0)
        for [sample] in sampled:
            assert sample.ended
            assert re.fullmatch(r"[ \w.,]+", sample.text, re.ASCII)
