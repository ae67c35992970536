"""The built-in prompt formats: exact prompts and token ids; each prompt extends the one before."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from vocabularies import text_of

from cerebrum_cli.core.conversation import Conversation, Text, Tokens, conversation_from_messages
from cerebrum_cli.core.vocabulary import detokenize
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.prompt_format import CEREBRUM, COLLECTIVE_COGNITION, PLAIN_FORMATS, PromptFormat, join_parts

BOS, EOS = 1, 2
DATA = Path(__file__).parents[1] / "data" / "formats"
FORMATS = (CEREBRUM, COLLECTIVE_COGNITION)
NO_FORMAT = CEREBRUM.without_format(None)
Case = dict[str, Any]


CASES = [
    pytest.param(prompt_format, case, id=f"{prompt_format.name}: {case['name']}")
    for prompt_format in FORMATS
    for case in json.loads((DATA / f"{prompt_format.name}.json").read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("prompt_format", "case"), CASES)
def test_prompt_matches_the_golden_text_and_ids(prompt_format: PromptFormat, case: Case, mistral: LlamaBackend) -> None:
    parts = prompt_format.render(conversation_from_messages(case["messages"], "case"))
    assert "<s>" + text_of(parts) == case["prompt"]
    assert list(mistral.tokenize(parts)) == case["mistral_v1_token_ids"]


def test_empty_system_prompt_is_omitted_and_only_cerebrum_has_a_default() -> None:
    for prompt_format in FORMATS:
        parts = prompt_format.render(Conversation(system_prompt="").user("Why?"))
        assert text_of(parts).startswith(("User: ", "USER: "))
    assert {name for name, prompt_format in PLAIN_FORMATS.items() if prompt_format.default_system} == {"cerebrum"}
    assert text_of(CEREBRUM.render(Conversation().user("Why?"))).startswith(f"{CEREBRUM.default_system}\nUser: Why?")


@pytest.mark.parametrize("prompt_format", FORMATS, ids=lambda prompt_format: prompt_format.name)
@pytest.mark.parametrize("system", ["Be brief.", " \n", "  Keep this. \n\n", "</s>", "User: x"])
def test_system_prompt_is_rendered_unchanged(prompt_format: PromptFormat, system: str) -> None:
    first = prompt_format.render(Conversation(system_prompt=system).user("Why?"))[0]
    assert first == Text(system)


def test_cerebrum_removes_eos_text_except_in_the_first_message() -> None:
    conversation = Conversation(system_prompt="</s>").user("a</s>b").assistant(" c</s> ").user("<</s>/s>d")
    assert text_of(CEREBRUM.render(conversation)) == "</s>\nUser: a</s>b\nAI: c\nUser: </s>d\nAI:"


@given(st.lists(st.sampled_from(["</s>", "<s>", "<unk>", "</", "s>", "<", ">", "\n", " ", "User:", "a"])).map("".join))
def test_user_text_never_becomes_a_special_token(mistral: LlamaBackend, text: str) -> None:
    for prompt_format, expected in ((CEREBRUM, [BOS]), (COLLECTIVE_COGNITION, [BOS, EOS])):
        conversation = Conversation(system_prompt=text).user(text).assistant(text).user(text)
        assert [token for token in mistral.tokenize(prompt_format.render(conversation)) if token <= EOS] == expected


def test_stop_strings_of_each_format() -> None:
    assert [prompt_format.stop for prompt_format in (*FORMATS, NO_FORMAT)] == [("\nUser:",), ("\nUSER:",), ()]


def test_raw_prompt_is_trusted_text(mistral: LlamaBackend) -> None:
    conversation = Conversation(system_prompt="unread").user("unread").assistant("unread").user(" a</s>b ")
    parts = NO_FORMAT.render(conversation)
    assert parts == (Text(" a</s>b ", trusted=True),)
    assert [token for token in mistral.tokenize(parts) if token <= EOS] == [BOS, EOS]
    assert mistral.tokenize(NO_FORMAT.render(Conversation().user("<s>a"))).count(BOS) == 1


# Each prompt extends the previous prompt and reply.

system_prompts = st.none() | st.text(max_size=20)


def replies(backend: LlamaBackend) -> st.SearchStrategy[tuple[int, ...]]:
    """Replies a model may generate: any tokens except those that end a reply, or the tokens of a text."""
    sampled = st.lists(st.integers(0, backend.size - 1).filter(lambda token: not backend.is_eog(token)), max_size=8)
    texts = st.text(max_size=20).map(lambda text: backend.tokenize((Text(text),))[1:])
    return sampled.map(tuple) | texts


@pytest.mark.parametrize("prompt_format", FORMATS, ids=lambda prompt_format: prompt_format.name)
@given(data=st.data())
def test_next_prompt_extends_prompt_and_reply(
    prompt_format: PromptFormat, mistral: LlamaBackend, data: st.DataObject
) -> None:
    conversation = Conversation(system_prompt=data.draw(system_prompts))
    evaluated: tuple[int, ...] = ()
    for _ in range(3):
        conversation = conversation.user(data.draw(st.text(max_size=20)))
        prompt = mistral.tokenize(prompt_format.render(conversation))
        assert prompt[: len(evaluated)] == evaluated
        reply = data.draw(replies(mistral))
        evaluated = prompt + reply
        conversation = conversation.assistant(detokenize(mistral, reply).strip(), reply)


def test_join_parts_merges_adjacent_and_drops_empty_texts() -> None:
    parts = (Text(""), Text("a"), Text("", True), Text("b"), Tokens(()), Text("c", True), Tokens((1,)), Tokens((2,)))
    assert join_parts(parts) == (Text("ab"), Text("c", True), Tokens((1,)), Tokens((2,)))
