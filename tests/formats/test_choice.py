"""Choosing the prompt format of a model: requested, known or embedded, and never guessed."""

import pytest
from templates import chosen_format
from tiny_models import CHATML_TEMPLATE
from vocabularies import MARKS, text_of

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import CerebrumError, FormatError, UsageError
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.choice import choose_format, special_tokens
from cerebrum_cli.formats.prompt_format import CEREBRUM, COLLECTIVE_COGNITION

CONTEXT_SIZE = 512


@pytest.mark.parametrize(
    ("requested", "known", "template", "chosen"),
    [
        *(("cerebrum", "collective-cognition", "{}", "cerebrum"), ("embedded", "cerebrum", "{}", "embedded")),
        *(("cerebrum", "a-typo", None, "cerebrum"), (None, "cerebrum", "{}", "cerebrum")),
        *((None, "embedded", "{}", "embedded"), (None, None, "{}", "embedded"), ("llama3", None, None, "llama3")),
        *(
            (None, None, " chatml\n", "chatml"),
            ("embedded", None, "gemma", "gemma"),
            (None, "mistral", "{}", "mistral"),
            (None, None, "ChatML\n", "chatml"),
        ),
    ],
)
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


def test_template_gets_special_tokens_of_its_vocabulary(chatml: LlamaBackend) -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ name }}{{ messages[0].content }}"
    prompt_format = chosen_format("embedded", source, {"name": "x"}).build(chatml, CONTEXT_SIZE)
    assert text_of(prompt_format.render(Conversation().user("a"))) == "<|im_start|><|im_end|>xa"


def test_special_tokens_are_listed_in_order_with_repeats(chatml: LlamaBackend) -> None:
    ids = special_tokens(chatml, CONTEXT_SIZE, "<think>a<|im_end|> <|im_end|></think><thinking>\n\n")
    assert [MARKS[token] for token in ids] == ["<think>", "<|im_end|>", "<|im_end|>", "</think>"]
