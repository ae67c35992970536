"""Reasoning that is turned on or off by the chat template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command_line import CommandLine, assert_error
from hypothesis import given
from hypothesis import strategies as st
from scripted_command import batch_here, run_here
from templates import ONE_TURN, TEMPLATES, embedded
from tiny_models import write_chatml
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


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the template of Qwen 3."""
    return write_chatml(tmp_path_factory.mktemp("models") / "thinker.gguf", chat_template=TEMPLATES["qwen3"])


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
def test_template_without_a_switch_gets_an_empty_thought(template: str, chatml: LlamaBackend) -> None:
    prompt_format = embedded(chatml, template)
    assert not prompt_format.has_switch
    assert prompt_format.render(replace(ONE_TURN, thinks=True)) == prompt_format.render(ONE_TURN)
    assert text_of(prompt_format.render(replace(ONE_TURN, thinks=False))).endswith("<think>\n\n</think>\n\n")


@given(
    template=st.sampled_from(sorted({*TEMPLATES} - {"gemma4", "granite"})),  # whose switch is in the system prompt
    turns=st.lists(st.sampled_from([None, True, False]), min_size=2, max_size=4),
)
def test_switched_prompt_extends_prompt_and_reply(
    template: str, turns: list[bool | None], chatml: LlamaBackend
) -> None:
    prompt_format, conversation, evaluated = embedded(chatml, template), Conversation(keeps_thoughts=True), ""
    for number, thinks in enumerate(turns):
        conversation = replace(conversation.user(f"Q{number}"), thinks=thinks)
        prompt = prompt_format.render(conversation)
        text = "".join(f"[{part.ids[0]}]" if isinstance(part, Tokens) else part.value for part in prompt)
        assert text.startswith(evaluated)
        evaluated = f"{text}[{number}]"
        conversation = conversation.assistant(f"A{number}", (number,))


def test_batch_rows_switch_thought(thinker: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "one", "think": value} for value in ("on", False, "off", "maybe")]
    _, [on, false, off, maybe] = batch_here({"rows": {}, "seeds": ["Yes."]}, tmp_path, thinker, *rows)
    assert off["prompt_tokens"] == false["prompt_tokens"] == on["prompt_tokens"] + len("<think>\n\n</think>\n\n")
    assert maybe["error"]["type"] == "invalid_setting"


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


def test_ask_sets_an_effort_that_the_model_knows(tmp_path: Path) -> None:
    model = write_chatml(tmp_path / "effort.gguf", chat_template=TEMPLATES["qwen3.8"])
    arguments = ("ask", "Why?", "-m", model)
    shown = run_here({"reply": "Yes."}, tmp_path, *arguments, "--think", "low", "--dry-run").out
    assert shown.startswith("<|im_start|>system\nReasoning effort: low<|im_end|>")
    assert run_here({"reply": "Yes."}, tmp_path, *arguments, "--think", "xhigh").code == 0
    for think, problem in (
        ("high", "this model does not support the effort 'high'"),
        ("very", "invalid --think: 'very'"),
    ):
        for more in ((), ("--dry-run",)):
            done = run_here({"reply": "Yes."}, tmp_path, *arguments, "--think", think, *more)
            assert_error(done, 2, problem, "low, medium")
    rows = [{"prompt": "one", "think": think} for think in ("medium", "high")]
    _, [medium, high] = batch_here({"rows": {}, "seeds": ["Yes."]}, tmp_path, model, *rows)
    assert medium["error"] is None
    assert "on, off, a number of tokens, low, medium, xhigh" in high["error"]["message"]


def test_effort_has_no_effect_without_a_template(thinker: Path, new_user: CommandLine) -> None:
    (new_user.config / "config.toml").write_text('think = "high"\n')
    arguments = ("ask", "Why?", "-m", thinker)
    for without in (("--raw",), ("--format", "cerebrum")):
        assert run_here({"reply": "Yes."}, new_user.home, *arguments, *without).code == 0
    assert run_here({"reply": "Yes."}, new_user.home, *arguments).code == 2


def test_chat_continues_conversations_with_other_switches(thinker: Path, tmp_path: Path) -> None:
    script = {"reply": "Yes."}
    for number, think in enumerate(("on", "off", "on")):
        more = ("-c",) if number else ()
        assert run_here(script, tmp_path, "ask", f"Q{number}", "-m", thinker, "--think", think, *more).code == 0
    empty = "<think>\n\n</think>\n\n"
    arguments = ("ask", "Q3", "-m", thinker, "--think", "off", "-c", "--dry-run")
    for keeps, blocks in (("off", [0, 0, 0, 0, 1]), ("on", [0, 0, 1, 0, 1])):
        shown = run_here(script, tmp_path, *arguments, "--set", f"keep_thoughts={keeps}").out
        assert [turn.count(empty) for turn in shown.split("<|im_start|>assistant\n")] == blocks
