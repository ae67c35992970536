"""Reasoning that is turned on or off by the chat template."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from templates import KEEPS_REPLIES, ONE_TURN, embedded
from vocabularies import text_of

from cerebrum_cli.core.conversation import Conversation, Tokens
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend

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


@given(
    template=st.sampled_from(KEEPS_REPLIES),
    turns=st.lists(st.sampled_from([None, True, False]), min_size=2, max_size=4),
)
def test_switched_prompt_extends_prompt_and_reply(
    template: str, turns: list[bool | None], chatml: LlamaBackend
) -> None:
    prompt_format, conversation, evaluated = embedded(chatml, template), Conversation(), ""
    for number, thinks in enumerate(turns):
        conversation = replace(conversation.user(f"Q{number}"), thinks=thinks)
        prompt = prompt_format.render(conversation)
        text = "".join(f"[{part.ids[0]}]" if isinstance(part, Tokens) else part.value for part in prompt)
        assert text.startswith(evaluated)
        evaluated = f"{text}[{number}]"
        conversation = conversation.assistant(f"A{number}", (number,))


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
