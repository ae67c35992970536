"""Which format a model is spoken to in: asked for, known, embedded, and never guessed."""

from __future__ import annotations

import pytest
from tiny_models import CHATML_TEMPLATE
from vocabularies import MARKS, text_of

from cerebrum_cli.application.inference.format_choice import FORMAT_NAMES, chosen_format, format_builder, special_tokens
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import CerebrumError, FormatError, UsageError
from cerebrum_cli.engine.llama.backend import LlamaBackend
from cerebrum_cli.formats.plain import CEREBRUM, COLLECTIVE_COGNITION, RAW


@pytest.mark.parametrize(
    ("asked", "known", "template", "chosen"),
    [
        ("cerebrum", "collective-cognition", "{}", "cerebrum"),
        ("embedded", "cerebrum", "{}", "embedded"),
        (None, "cerebrum", "{}", "cerebrum"),
        (None, "cerebrum", None, "cerebrum"),
        (None, "embedded", "{}", "embedded"),
        (None, None, "{}", "embedded"),
        ("cerebrum", "a-typo", None, "cerebrum"),
    ],
)
def test_what_is_asked_for_wins_then_what_is_known_then_the_template(
    asked: str | None, known: str | None, template: str | None, chosen: str
) -> None:
    assert chosen_format(asked, known, template) == chosen


@pytest.mark.parametrize(
    ("asked", "known", "template", "kind", "what"),
    [
        ("chatml", None, "{}", UsageError, "unknown format 'chatml'"),
        ("raw", None, "{}", UsageError, "unknown format 'raw'"),
        (None, None, None, FormatError, "its prompt format is unknown"),
        (None, None, "", FormatError, "its prompt format is unknown"),
        ("embedded", "cerebrum", None, FormatError, "this model's file embeds no template"),
        (None, "embedded", None, FormatError, "this model's file embeds no template"),
        (None, "a-typo", "{}", FormatError, "the catalogue gives this model the format 'a-typo'"),
    ],
)
def test_a_format_is_never_guessed(
    asked: str | None, known: str | None, template: str | None, kind: type[CerebrumError], what: str
) -> None:
    with pytest.raises(kind, match=what) as caught:
        chosen_format(asked, known, template)
    assert "cerebrum" in caught.value.hint


def test_the_names_of_formats_are_these() -> None:
    assert FORMAT_NAMES == ("cerebrum", "collective-cognition", "embedded")


def test_a_row_is_taken_as_it_is(chatml: LlamaBackend) -> None:
    for row in (CEREBRUM, COLLECTIVE_COGNITION, RAW):
        assert format_builder(row.name, CHATML_TEMPLATE, {})(chatml) is row


@pytest.mark.parametrize("name", ["cerebrum", "raw"])
def test_options_that_nothing_reads_are_an_error(name: str) -> None:
    with pytest.raises(UsageError, match=f"--template-arg is for embedded templates.* in the format {name}$"):
        format_builder(name, CHATML_TEMPLATE, {"enable_thinking": False})


def test_a_template_is_joined_with_its_models_vocabulary(chatml: LlamaBackend) -> None:
    form = format_builder("embedded", "{{ bos_token }}{{ eos_token }}{{ name }}", {"name": "x"})(chatml)
    assert text_of(form.render(Conversation().user("a"))) == "<|im_start|><|im_end|>x"


def test_a_bad_template_is_found_when_it_is_rendered_and_not_before(chatml: LlamaBackend) -> None:
    form = format_builder("embedded", "{{", {})(chatml)
    with pytest.raises(FormatError, match="cannot be read"):
        form.render(Conversation().user("a"))


def test_the_special_tokens_of_a_text_are_listed_in_order_with_repeats(chatml: LlamaBackend) -> None:
    ids = special_tokens(chatml, "<think>a<|im_end|> <|im_end|></think><thinking>\n\n")
    assert [MARKS[token] for token in ids] == ["<think>", "<|im_end|>", "<|im_end|>", "</think>"]
