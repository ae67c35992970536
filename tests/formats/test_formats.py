"""Prompt formats: the built-in ones, whose prompts have exact token ids and extend the one before, and the choice."""

from typing import Any

import pytest
from cases import rows
from hypothesis import given, strategies as st
from templates import chosen_format
from tiny_models import CHATML_TEMPLATE
from vocabularies import MARKS, text_of

from cerebrum_cli.core.conversation import Conversation, Text, Tokens, conversation_from_messages
from cerebrum_cli.core.errors import CerebrumError, FormatError, UsageError
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.core.vocabulary import detokenize
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.choice import FORMAT_NAMES, choose_format, special_tokens
from cerebrum_cli.formats.prompt_format import CEREBRUM, COLLECTIVE_COGNITION, PromptFormat, join_parts

BOS, EOS = 1, 2
CONTEXT_SIZE = 512
FORMATS = (CEREBRUM, COLLECTIVE_COGNITION)
NO_FORMAT = CEREBRUM.without_format(None)
Case = dict[str, Any]
CASES = [
    pytest.param(prompt_format, case, id=f"{prompt_format.name}: {case['name']}")
    for prompt_format in FORMATS
    for case in rows(f"formats/{prompt_format.name}")
]


@pytest.mark.parametrize(("prompt_format", "case"), CASES)
def test_prompt_matches_the_golden_text_and_ids(prompt_format: PromptFormat, case: Case, mistral: LlamaBackend) -> None:
    parts = prompt_format.render(conversation_from_messages(case["messages"], "case"))
    assert "<s>" + text_of(parts) == case["prompt"]
    assert list(mistral.tokenize(parts)) == case["mistral_v1_token_ids"]


@pytest.mark.parametrize("case", rows("formats/templates"), ids=lambda case: case["format"])
def test_prompt_of_a_named_template_matches_the_golden_text(case: Case, mistral: LlamaBackend) -> None:
    messages = [{"role": role, "content": content} for role, content in case["messages"]]
    prompt_format = chosen_format(case["format"]).build(mistral, CONTEXT_SIZE)
    assert text_of(prompt_format.render(conversation_from_messages(messages, "case"))) == case["prompt"]


def test_every_format_has_golden_prompts() -> None:
    with_prompts = {prompt_format.name for prompt_format in FORMATS} | {
        case["format"] for case in rows("formats/templates")
    }
    assert with_prompts == {*FORMAT_NAMES} - {EMBEDDED}


@given(st.lists(st.sampled_from(["</s>", "<s>", "<unk>", "</", "s>", "<", ">", "\n", " ", "User:", "a"])).map("".join))
def test_user_text_never_becomes_a_special_token(mistral: LlamaBackend, text: str) -> None:
    for prompt_format, expected in ((CEREBRUM, [BOS]), (COLLECTIVE_COGNITION, [BOS, EOS])):
        conversation = Conversation(system_prompt=text).user(text).assistant(text).user(text)
        assert [token for token in mistral.tokenize(prompt_format.render(conversation)) if token <= EOS] == expected


def test_stop_strings_of_each_format() -> None:
    assert [prompt_format.stop for prompt_format in (*FORMATS, NO_FORMAT)] == [("\nUser:",), ("\nUSER:",), ()]


def test_markup_of_a_raw_prompt_is_special(mistral: LlamaBackend) -> None:
    parts = NO_FORMAT.render(Conversation().user(" a</s>b "))
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


# The format of a model: requested, known or embedded, and never guessed.


@pytest.mark.parametrize(("requested", "known", "template", "chosen"), rows("chosen_formats"))
def test_requested_format_precedes_known_precedes_template(
    requested: str | None, known: str | None, template: str | None, chosen: str
) -> None:
    assert choose_format(requested, known, template).name == chosen


@pytest.mark.parametrize(
    ("requested", "known", "template", "kind", "message"),
    [
        ("chatlm", None, "{}", UsageError, "unknown format 'chatlm'"),
        ("Llama-3", None, None, UsageError, "unknown format 'Llama-3'"),
        (None, None, None, FormatError, "unknown prompt format: the model is not in the catalog"),
        (None, "embedded", None, FormatError, "the model file has no chat template"),
        (None, "a-typo", "{}", UsageError, "unknown format 'a-typo'"),
    ],
)
def test_missing_or_unknown_format_is_an_error(
    requested: str | None, known: str | None, template: str | None, kind: type[CerebrumError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        choose_format(requested, known, template)
    assert "cerebrum" in caught.value.hint
    assert caught.value.hint.startswith("did you mean llama3? use one of ") == (requested == "Llama-3")


def test_builder_returns_built_in_formats_unchanged(chatml: LlamaBackend) -> None:
    for plain in (CEREBRUM, COLLECTIVE_COGNITION):
        assert chosen_format(plain.name, CHATML_TEMPLATE).build(chatml, CONTEXT_SIZE) is plain


def test_template_variables_of_a_built_in_format_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"template_arg needs the format embedded.* uses cerebrum$"):
        chosen_format("cerebrum", CHATML_TEMPLATE, {"enable_thinking": False}).check(None)


def test_special_tokens_are_listed_in_order_with_repeats(chatml: LlamaBackend) -> None:
    ids = special_tokens(chatml, CONTEXT_SIZE, "<think>a<|im_end|> <|im_end|></think><thinking>\n\n")
    assert [MARKS[token] for token in ids] == ["<think>", "<|im_end|>", "<|im_end|>", "</think>"]
