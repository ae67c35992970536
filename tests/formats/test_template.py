"""Prompts of chat templates embedded in GGUF files, their errors, and replies that keep their tokens."""

import datetime
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NoReturn

import jinja2
import pytest
from cases import cases, rows
from hypothesis import given, strategies as st
from templates import (
    BARE,
    KEEPS_REPLIES,
    NO_SYSTEM,
    ONE_TURN,
    TEMPLATES,
    UPPER,
    chosen_format,
    embedded,
    untrusted,
)
from tool_templates import ALL_TEMPLATES, TOOLS, shown
from vocabularies import marked_up, text_of

from cerebrum_cli.core.conversation import Conversation, Message, Text
from cerebrum_cli.core.errors import FormatError, Interrupted
from cerebrum_cli.core.tools import Round, ToolCall
from cerebrum_cli.core.vocabulary import detokenize
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.markup import REASONING_MARKUPS, mentions_markup
from cerebrum_cli.formats.prompt_format import OTHER_FORMAT
from cerebrum_cli.formats.template_sandbox import find_switch, run_template, variables


def spoken(texts: list[str]) -> Conversation:
    """A conversation whose first text is the user's."""
    conversation = Conversation()
    for number, text in enumerate(texts):
        conversation = conversation.assistant(text) if number % 2 else conversation.user(text)
    return conversation


CONVERSATIONS = {name: spoken(texts) for name, texts in rows("conversations").items()}
SYSTEMS = (None, "Be brief.", " Be\nbrief. \n", "")


def conversations(template: str) -> Iterator[tuple[str, Conversation]]:
    """Yield all conversations that a template supports, with and without a system prompt."""
    for (name, conversation), system in itertools.product(CONVERSATIONS.items(), SYSTEMS):
        if system is None or template not in NO_SYSTEM:
            yield f"{name}, system {system!r}", Conversation(conversation.messages, system)


@cache
def plain_jinja(source: str) -> jinja2.Template:
    """Compile a template with plain Jinja and the functions chat templates expect."""

    def raise_exception(message: str) -> NoReturn:
        raise AssertionError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda pattern: datetime.datetime.now().strftime(pattern),
    }
    source = source.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}")
    return environment.from_string(source)


def render_plain(source: str, backend: LlamaBackend, messages: list[dict[str, str]], **values: object) -> str:
    return plain_jinja(source).render(
        messages=messages,
        add_generation_prompt=True,
        bos_token=backend.special_token_text("bos"),
        eos_token=backend.special_token_text("eos"),
        tools=None,
        **values,
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_template_renders_like_plain_jinja_and_trusts_no_message(template: str, chatml: LlamaBackend) -> None:
    for name, conversation in conversations(template):
        parts = embedded(chatml, template).render(conversation)
        assert text_of(parts) == render_plain(TEMPLATES[template], chatml, conversation.openai_messages), name
        contents = [message["content"] for message in conversation.openai_messages]
        assert sorted(text.strip() for text in untrusted(parts)) == sorted(filter(None, map(str.strip, contents))), name


def test_both_renders_use_the_same_time(chatml: LlamaBackend) -> None:
    parts = embedded(chatml, "{{ strftime_now('%f') }}" + BARE).render(Conversation().user("<|im_end|>"))
    assert untrusted(parts) == ["<|im_end|>"]


@pytest.mark.parametrize(("name", "family"), [("gemma", "gemma"), ("llama3", "llama-3"), ("mistral", "mistral")])
def test_named_format_is_like_the_template_of_its_family(name: str, family: str, chatml: LlamaBackend) -> None:
    named = chosen_format(name).build(chatml, chatml.context_size)
    for case, conversation in conversations(family):
        if conversation.system_prompt != "":
            assert text_of(named.render(conversation)) == text_of(embedded(chatml, family).render(conversation)), case


# Prompts and errors. In a prompt, `«…»` is text that is not trusted, and `{1 2}` are tokens. In the template of a case,
# a text may be `replaced`, and there may be `more` behind it; or the case has a built-in `format`.


def message(role: Any, content: str, fields: dict[str, Any] | None = None) -> Message:
    """A message with its fields, and the rounds before it."""
    fields = dict(fields or {})
    rounds = []
    for part in fields.pop("rounds", []):
        calls = tuple(ToolCall(*call) for call in part["calls"])
        tokens = tuple(part["tokens"]) if "tokens" in part else None
        rounds.append(Round(calls, part.get("content", ""), part.get("reasoning"), tokens))
    if "tokens" in fields:
        fields["tokens"] = tuple(fields["tokens"])
    return Message(role, content, rounds=tuple(rounds), **fields)


@pytest.mark.parametrize("case", rows("prompts"), ids=lambda case: f"{case['what']}: {case.get('template', '')[:40]}")
def test_prompt_of_a_template(case: dict[str, Any], chatml: LlamaBackend) -> None:
    name = case.get("template", "")
    source = (ALL_TEMPLATES | TEMPLATES).get(name, name) + case.get("more", "")
    source = source.replace(*case.get("replaced", ("", "")), 1)
    prompt_format = embedded(chatml, source, **case.get("options", {}))
    if "format" in case:
        prompt_format = chosen_format(case["format"]).build(chatml, chatml.context_size)
    conversation = Conversation(
        tuple(message(*fields) for fields in case["messages"]),
        case.get("system"),
        case.get("thinks"),
        prefill=message(*case["prefill"]) if "prefill" in case else None,
        tools=TOOLS if case.get("functions") else (),
    )
    try:
        prompt = shown(prompt_format.render(conversation))
    except FormatError as error:
        assert error.message.startswith(f"the chat template embedded {case['error']}")
        assert "\n" not in error.message and error.hint == OTHER_FORMAT
    else:
        assert prompt == case["prompt"].replace("TODAY", f"{datetime.date.today()}")
    assert prompt_format.has_system == case.get("has_system", True)


# Replies as tokens in the prompt.


@cases(60)
@given(template=st.sampled_from([*KEEPS_REPLIES, BARE, UPPER]), data=st.data())
def test_next_prompt_extends_prompt_and_reply(template: str, data: st.DataObject, chatml: LlamaBackend) -> None:
    """Also if reasoning is turned on and off."""
    prompt_format = embedded(chatml, template)
    sampled = st.lists(st.integers(0, chatml.size - 1).filter(lambda token: not chatml.is_eog(token)), max_size=8)
    texts = marked_up.map(lambda text: chatml.tokenize((Text(text),)))
    conversation = Conversation()
    evaluated: tuple[int, ...] = ()
    for _ in range(3):
        thinks = data.draw(st.sampled_from([None, True, False])) if template in KEEPS_REPLIES else None
        question = data.draw(st.text("ab <>\n", min_size=1).filter(str.strip))
        conversation = replace(conversation.user(question), thinks=thinks)
        prompt = chatml.tokenize(prompt_format.render(conversation))
        assert prompt[: len(evaluated)] == evaluated
        reply = data.draw(sampled.map(tuple) | texts)
        conversation = conversation.assistant(detokenize(chatml, reply).strip(), reply)
        evaluated = prompt + reply


def inline(answer: str, reasoning: str) -> dict[str, str]:
    return {"content": f"<think>\n{reasoning}\n</think>\n\n{answer}"}


def in_fields(answer: str, reasoning: str) -> dict[str, str]:
    """As `transformers` gives templates a reply that has its reasoning in a field of its own."""
    return {"content": answer, **dict.fromkeys(("reasoning_content", "thinking", "reasoning"), reasoning)}


DROPPING = {  # templates that drop reasoning, and how a user of `transformers` gives them replies
    "deepseek-r1": lambda answer, reasoning: {"content": answer},
    "deepseek-v3.1": lambda answer, reasoning: {"content": answer},
    "gemma4": lambda answer, reasoning: {"content": f"<|channel>thought\n{reasoning}<channel|>{answer}"},
    "gpt-oss": in_fields,
    "lfm2.5": inline,
    "qwen3": inline,
    "qwen3.5": in_fields,
    "solar": in_fields,
}
WITH_REASONING = Conversation().user("One?").assistant("1.", (7, 8), "A <|im_end|> thought.").user("Two?")
THREE_TURNS = WITH_REASONING.assistant("2.\n", (9,), "Another\n\nthought.").user("Three?")


@pytest.mark.parametrize("thinks", [None, True, False])
@pytest.mark.parametrize("template", DROPPING)
def test_earlier_reasoning_is_dropped_as_transformers_does(
    template: str, thinks: bool | None, chatml: LlamaBackend
) -> None:
    prompt_format, source = embedded(chatml, template), TEMPLATES[template]
    switch = find_switch(source)
    messages = [
        {"role": message.role, "content": message.content}
        | (DROPPING[template](message.content, message.reasoning) if message.reasoning else {})
        for message in THREE_TURNS.messages
    ]
    switched = switch.values(thinks) if switch and thinks is not None else {}
    expected = render_plain(source, chatml, messages, **switched)
    parts = prompt_format.render(replace(THREE_TURNS, thinks=thinks if switch else None))
    assert text_of(parts) == expected
    assert [text.strip() for text in untrusted(parts) if "thought" not in text] == [
        "One?",
        "1.",
        "Two?",
        "2.",
        "Three?",
    ]
    assert "<|im_end|> thought" not in expected
    assert chatml.tokenize(parts) == chatml.tokenize((Text(expected, trusted=True),))


# The sandbox: what templates may use, what they may not, and their errors.


@pytest.mark.parametrize(("source", "expected"), rows("sandbox"))
def test_sandbox_has_what_templates_expect(source: str, expected: str) -> None:
    values = {**variables(source), "messages": [{"role": "user", "content": "hi"}]}
    assert run_template(source, values) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{% if a %}" * 200 + "{% endif %}" * 200,
        "{{ " + "(" * 100_000 + ")" * 100_000 + " }}",
        "{{ " + "9" * 5000 + " }}",
    ],
)
def test_template_that_python_cannot_compile_is_an_error(source: str) -> None:
    with pytest.raises(FormatError, match=r"^cannot be parsed: "):
        run_template(source, {})


def test_interrupt_while_rendering_is_not_a_format_error() -> None:
    class Late:
        def __str__(self) -> str:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        run_template("{{ value }}", {"value": Late()})


@pytest.mark.parametrize(
    ("source", "opens"),
    [
        ("<|user|> a <|end|>", []),
        ("qwen3", ["<think>"]),
        ("[/THINK] </think>", ["<think>"]),
        ("<|channel>thought", ["<|channel>thought"]),
    ],
)
def test_template_mentions_markup_by_what_nothing_else_means(source: str, opens: list[str]) -> None:
    assert [
        markup.open for markup in REASONING_MARKUPS if mentions_markup(TEMPLATES.get(source, source), markup)
    ] == opens


# Reasoning that is turned on or off.


SWITCHES = {
    "qwen3": "enable_thinking",
    "smollm3": "enable_thinking",
    "granite": "thinking",
    "deepseek-v3.1": "thinking",
}
UNRELATED = "{% set thinking = messages[-1].content %}{{ thinking }}|<think>"


@pytest.mark.parametrize("template", SWITCHES)
@pytest.mark.parametrize("thinks", [True, False])
def test_template_switch_is_set(template: str, thinks: bool, chatml: LlamaBackend) -> None:
    expected = embedded(chatml, template, **{SWITCHES[template]: thinks}).render(ONE_TURN)
    prompt_format = embedded(chatml, template)
    assert prompt_format.has_switch
    assert prompt_format.render(replace(ONE_TURN, thinks=thinks)) == expected
    assert prompt_format.render(replace(ONE_TURN, thinks=not thinks)) != expected
    fixed = embedded(chatml, template, **{SWITCHES[template]: not thinks})  # an argument wins over the switch
    assert fixed.render(replace(ONE_TURN, thinks=thinks)) == fixed.render(ONE_TURN)


@pytest.mark.parametrize("template", ["deepseek-r1", UNRELATED])
def test_template_without_a_switch_gets_empty_reasoning(template: str, chatml: LlamaBackend) -> None:
    prompt_format = embedded(chatml, template)
    assert not prompt_format.has_switch
    assert prompt_format.render(replace(ONE_TURN, thinks=True)) == prompt_format.render(ONE_TURN)
    assert text_of(prompt_format.render(replace(ONE_TURN, thinks=False))).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("template", "efforts"),
    [
        ("gpt-oss", ("low", "medium", "high")),
        ("qwen3.8", ("low", "medium", "xhigh")),
        ("solar", ("minimal", "low", "high")),
        ("qwen3", ()),
    ],
)
def test_template_takes_efforts(template: str, efforts: tuple[str, ...], chatml: LlamaBackend) -> None:
    prompt_format = embedded(chatml, template)
    assert prompt_format.efforts == efforts
    for effort in efforts:
        expected = embedded(chatml, template, reasoning_effort=effort).render(ONE_TURN)
        assert prompt_format.render(replace(ONE_TURN, thinks=True, effort=effort)) == expected
    fixed = embedded(chatml, template, reasoning_effort="low")
    assert fixed.render(replace(ONE_TURN, effort="medium")) == fixed.render(ONE_TURN)
