"""A model that really thinks, through the command line: budgets, schemas after reasoning, and histories of turns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest
from command_line import CommandLine, assert_error
from vocabularies import open_vocabulary

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.gguf.header import read_header

pytestmark = pytest.mark.slow

QUESTION = "What is 38 plus 47?"


def answers(user: CommandLine, thinker: Path, *options: str | Path, seeds: int = 16) -> list[dict[str, Any]]:
    """Results of a batch that asks one question with many seeds, 16 at a time."""
    rows, out = user.home / "rows.jsonl", user.home / f"answers{len(list(user.home.iterdir()))}.jsonl"
    lines = [{"prompt": QUESTION, "seed": seed, "temperature": 1.0} for seed in range(seeds)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = user.run("batch", rows, "-o", out, "-m", thinker, "--parallel", "16", *options)
    assert done.code == 0, done.err
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_think_budget_ends_reasoning_at_its_first_sentence(new_user: CommandLine, thinker: Path) -> None:
    unlimited, limited = (answers(new_user, thinker, "--think", value) for value in ("on", "8"))
    for whole, cut in zip(unlimited, limited, strict=True):
        assert cut["reasoning"] == whole["reasoning"].splitlines()[0]
        assert cut["reasoning_closed_at"] < whole["completion_tokens"]
        assert cut["text"].startswith("The answer is ") and cut["finish_reason"] == "stop"
    right, guessed = (sum(row["final_answer"] == "85" for row in rows) for rows in (unlimited, limited))
    assert right > guessed


@pytest.mark.parametrize("options", [(), ("--think", "8")], ids=["plain", "budget"])
def test_schema_binds_the_answer_after_reasoning_for_each_seed(
    options: Sequence[str], new_user: CommandLine, thinker: Path
) -> None:
    rows = answers(new_user, thinker, "--schema", "answer int", *options, seeds=40)
    for row in rows:
        assert row["error"] is None, row
        assert "38 plus 47" in row["reasoning"] and isinstance(json.loads(row["text"])["answer"], int)
    if "--think" not in options:
        assert sum(json.loads(row["text"]) == {"answer": 85} for row in rows) > 22


def test_stop_string_that_ends_reasoning_is_refused(new_user: CommandLine, thinker: Path) -> None:
    question = ("ask", "-m", thinker, QUESTION, "--no-log", "--stop", "</think>")
    assert_error(new_user.run(*question), 2, "invalid stop: '</think>'; stop strings apply to the answer", "--think")
    assert new_user.run(*question, "--think", "off").code == 0


def rendered_ids(thinker: Path, messages: list[dict[str, str]], **variables: bool) -> list[int]:
    """Token ids of a conversation as transformers renders it with the template in the file."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(read_header(thinker).chat_template or "")
    prompt = template.render(messages=messages, add_generation_prompt=True, **variables)
    with open_vocabulary(thinker) as backend:
        return list(backend.tokenize([Text(prompt, trusted=True)]))


def test_history_of_three_turns_has_the_ids_of_the_template(new_user: CommandLine, thinker: Path) -> None:
    questions = ("What is 17 plus 25?", "Double it. Answer in JSON.", "Now subtract 6.")
    messages: list[dict[str, str]] = []
    for question in questions:
        continued = ("-c",) if messages else ()
        messages.append({"role": "user", "content": question})
        for variables in ({}, {"enable_thinking": False}):
            options = ("--think", "off") if variables else ()
            shown = new_user.run("ask", "-m", thinker, *continued, *options, "--dry-run", "--json", question)
            assert shown.object["token_ids"] == rendered_ids(thinker, messages, **variables)
        reply = new_user.run("ask", "-m", thinker, *continued, "--json", question).object
        raw = f"<think>\n{reply['reasoning']}\n</think>\n\n{reply['text']}"
        messages.append({"role": "assistant", "content": raw})
    assert reply["text"] == "The answer is 78."


def test_history_of_a_batch_row_has_the_ids_of_the_template(new_user: CommandLine, thinker: Path) -> None:
    turns = [
        {"role": "user", "content": "What is 17 plus 25?"},
        {"role": "assistant", "reasoning_content": "I need 17 plus 25.", "content": "The answer is 42."},
        {"role": "user", "content": "Double it."},
    ]
    path = new_user.home / "messages.json"
    path.write_text(json.dumps(turns))
    shown = new_user.run("ask", "-m", thinker, "--dry-run", "--json", "--messages", path)
    assert shown.object["token_ids"] == rendered_ids(thinker, turns)


def test_chat_of_40_turns_truncates_no_answer(new_user: CommandLine, thinker: Path) -> None:
    questions = "".join(f"What is {number} plus {61 - number}?\n" for number in range(11, 51))
    done = new_user.run("chat", "-m", thinker, "--session", "sums", "--seed", "1", stdin=questions)
    assert done.code == 0 and "truncated" not in done.err and "only reasoning" not in done.err, done.err
    assert done.err.count("is full: dropped the") > 1
    replies = new_user.messages("sums")[1::2]
    assert [reply["finish_reason"] for reply in replies] == ["stop"] * 40
    assert all(reply["content"] and reply["reasoning"] for reply in replies)
