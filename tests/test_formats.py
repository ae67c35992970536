"""The formats that are rows of data: exact prompts, exact token ids, and prompts that only ever grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import text_of

from cerebrum_cli.application.inference.responder import spelled
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.parts import Part, Text, Tokens, join_parts
from cerebrum_cli.engine.llama.backend import LlamaBackend
from cerebrum_cli.formats.format import PromptFormat
from cerebrum_cli.formats.plain import CEREBRUM, COLLECTIVE_COGNITION, PLAIN_FORMATS, RAW

BOS, EOS = 1, 2
LINE_BREAK = 13
FORMATS = (CEREBRUM, COLLECTIVE_COGNITION)
Case = dict[str, Any]


def golden(name: str) -> list[Case]:
    return list(json.loads((Path(__file__).parent / "data" / "formats" / f"{name}.json").read_text(encoding="utf-8")))


CASES = [pytest.param(row, case, id=f"{row.name}: {case['name']}") for row in FORMATS for case in golden(row.name)]


def conversation_of(case: Case) -> Conversation:
    conversation = Conversation()
    for message in case["messages"]:
        if message["role"] == "system":
            conversation = Conversation(system_prompt=message["content"])
        elif message["role"] == "user":
            conversation = conversation.user(message["content"])
        else:
            conversation = conversation.assistant(message["content"])
    return conversation


@pytest.mark.parametrize(("row", "case"), CASES)
def test_a_conversation_is_written_exactly_as_the_model_saw_it_in_training(row: PromptFormat, case: Case) -> None:
    assert "<s>" + text_of(row.render(conversation_of(case))) == case["prompt"]


@pytest.mark.parametrize(("row", "case"), CASES)
def test_a_prompt_becomes_exactly_these_tokens(row: PromptFormat, case: Case, mistral: LlamaBackend) -> None:
    assert list(mistral.tokenize(row.render(conversation_of(case)))) == case["mistral_v1_token_ids"]


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_an_empty_system_prompt_leaves_no_trace(row: PromptFormat) -> None:
    parts = row.render(Conversation(system_prompt="").user("Why?"))
    assert text_of(parts).startswith(("User: ", "USER: "))


def test_only_cerebrum_has_a_system_prompt_of_its_own() -> None:
    assert {name for name, row in PLAIN_FORMATS.items() if row.default_system} == {"cerebrum"}
    assert text_of(CEREBRUM.render(Conversation().user("Why?"))).startswith(f"{CEREBRUM.default_system}\nUser: Why?")


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
@pytest.mark.parametrize("system", ["Be brief.", " \n", "  Keep this. \n\n", "</s>", "User: x"])
def test_a_system_prompt_is_kept_to_the_letter(row: PromptFormat, system: str) -> None:
    first = row.render(Conversation(system_prompt=system).user("Why?"))[0]
    assert first == Text(system)


def test_cerebrum_takes_the_text_of_its_end_token_out_of_all_messages_but_the_first() -> None:
    talk = Conversation(system_prompt="</s>").user("a</s>b").assistant(" c</s> ").user("<</s>/s>d")
    assert text_of(CEREBRUM.render(talk)) == "</s>\nUser: a</s>b\nAI: c\nUser: </s>d\nAI:"


def test_collective_cognition_keeps_the_text_and_ends_each_reply_with_the_token(mistral: LlamaBackend) -> None:
    ids = mistral.tokenize(COLLECTIVE_COGNITION.render(Conversation().user("a</s>").assistant("b</s>c").user("d</s>")))
    assert spelled(mistral, ids).count("</s>") == 4
    assert ids.count(EOS) == 1


@settings(deadline=None)
@given(st.lists(st.sampled_from(["</s>", "<s>", "<unk>", "</", "s>", "<", ">", "\n", " ", "User:", "a"])).map("".join))
def test_nothing_a_user_writes_becomes_a_special_token(mistral: LlamaBackend, text: str) -> None:
    for row, expected in ((CEREBRUM, [BOS]), (COLLECTIVE_COGNITION, [BOS, EOS])):
        talk = Conversation(system_prompt=text).user(text).assistant(text).user(text)
        assert [token for token in mistral.tokenize(row.render(talk)) if token <= EOS] == expected


def test_each_row_says_which_text_ends_a_reply() -> None:
    assert {row.name: row.stop for row in (*FORMATS, RAW)} == {
        "cerebrum": ("\nUser:",),
        "collective-cognition": ("\nUSER:",),
        "raw": (),
    }


def test_a_raw_prompt_is_the_text_itself_and_may_name_special_tokens(mistral: LlamaBackend) -> None:
    talk = Conversation(system_prompt="unread").user("unread").assistant("unread").user(" a</s>b ")
    parts = RAW.render(talk)
    assert parts == (Text(" a</s>b ", trusted=True),)
    assert [token for token in mistral.tokenize(parts) if token <= EOS] == [BOS, EOS]
    assert mistral.tokenize(RAW.render(Conversation().user("<s>a"))).count(BOS) == 1


# The extension law.

system_prompts = st.none() | st.text(max_size=20)


def replies(backend: LlamaBackend) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw what a model may say: any tokens but those that end a reply, or those of some text."""
    sampled = st.lists(st.integers(0, backend.size - 1).filter(lambda token: not backend.is_eog(token)), max_size=8)
    texts = st.text(max_size=20).map(lambda text: backend.tokenize((Text(text),))[1:])
    return sampled.map(tuple) | texts


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
@settings(deadline=None)
@given(data=st.data())
def test_the_next_prompt_extends_what_was_read_and_said(
    row: PromptFormat, mistral: LlamaBackend, data: st.DataObject
) -> None:
    talk = Conversation(system_prompt=data.draw(system_prompts))
    read: tuple[int, ...] = ()
    for _ in range(3):
        talk = talk.user(data.draw(st.text(max_size=20)))
        prompt = mistral.tokenize(row.render(talk))
        assert prompt[: len(read)] == read
        said = data.draw(replies(mistral))
        read = prompt + said
        talk = talk.assistant(spelled(mistral, said).strip(), said)


def test_what_follows_a_reply_has_no_space_it_would_not_have_had(mistral: LlamaBackend) -> None:
    said = mistral.tokenize((Text("Four."),))[1:]
    asked = Conversation(system_prompt="").user("2+2?")
    again = asked.assistant("Four.").user("Sure?")
    as_text = mistral.tokenize(CEREBRUM.render(again))
    as_said = mistral.tokenize(CEREBRUM.render(asked.assistant("Four.", said).user("Sure?")))
    assert as_said == as_text
    before = len(mistral.tokenize(CEREBRUM.render(asked))) + len(said)
    assert as_said[before] == LINE_BREAK


def test_a_reply_in_tokens_stands_in_the_prompt_whatever_its_text() -> None:
    talk = Conversation(system_prompt="").user("a").assistant("b", (7, 8)).user("c")
    expected: tuple[Part, ...] = (
        *(Text("User: ", True), Text("a"), Text("\nAI:", True)),
        Tokens((7, 8)),
        *(Text("\nUser: ", True), Text("c"), Text("\nAI:", True)),
    )
    assert CEREBRUM.render(talk) == expected


def test_runs_of_one_kind_become_one_and_empty_ones_none() -> None:
    parts = (Text(""), Text("a"), Text("", True), Text("b"), Tokens(()), Text("c", True), Tokens((1,)), Tokens((2,)))
    assert join_parts(parts) == (Text("ab"), Text("c", True), Tokens((1,)), Tokens((2,)))
