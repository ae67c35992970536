"""JSON Schema, regular expressions and Lark grammars: which texts a vocabulary can write, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Optional, TypeVar
from uuid import UUID

import pytest
from asking import ask
from cases import rows
from llama_engines import STORY, open_engine
from pydantic import AnyUrl, BaseModel, Field, create_model

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.grammar import Grammar, schema_grammar
from cerebrum_cli.engine.llama.vocabulary import LlamaVocabulary
from cerebrum_cli.grammars.guidance import compile_grammar, is_allowed
from cerebrum_cli.grammars.validation import check_grammar, schema_problem

T = TypeVar("T")
KINDS = ["fox", 'wolf "grey"', "back\\slash\n", "größe", "猫", None]
INTEGER = {"type": "integer"}


def accepts(vocabulary: LlamaVocabulary, grammar: Grammar, text: str) -> bool:
    """Whether the vocabulary can write a text as the whole answer."""
    matcher = compile_grammar(grammar, vocabulary.guidance_tokenizer)
    tokens = list(vocabulary.tokenize((Text(text),)))
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def outcomes(schema: Any, text: str) -> tuple[bool, bool]:
    """Whether a local model can write a text, and whether it is then found to match the schema."""
    grammar = schema_grammar(schema)
    check_grammar(grammar)
    return is_allowed(grammar, text.encode(), is_whole=True), schema_problem(grammar, text) is None


@pytest.mark.parametrize(("schema", "valid", "never_written", "mismatched"), rows("written_schemas"))
def test_vocabulary_writes_what_a_schema_allows(
    chatml: LlamaVocabulary, schema: Any, valid: list[str], never_written: list[str], mismatched: list[str]
) -> None:
    """Or what it does not allow, which is found afterwards: llguidance ignores some of JSON Schema."""
    grammar = schema_grammar(schema)
    assert [text for text in (*valid, *mismatched) if not accepts(chatml, grammar, text)] == []
    assert [text for text in never_written if accepts(chatml, grammar, text)] == []
    assert [text for text in valid if outcomes(schema, text) != (True, True)] == []
    assert [text for text in mismatched if outcomes(schema, text) != (True, False)] == []


@pytest.mark.parametrize(
    ("grammar", "valid", "invalid"),
    [
        (Grammar("regex", "[0-9]{3}-(?:a|ü)\n"), ["123-a", "123-ü"], ["12-a"]),
        (Grammar("lark", 'start: "(" start ")" | /[a-z]+/'), ["x", "((ab))"], ["(x", "()"]),
    ],
)
def test_vocabulary_writes_what_other_grammars_allow(
    chatml: LlamaVocabulary, grammar: Grammar, valid: Iterable[str], invalid: Iterable[str]
) -> None:
    assert all(accepts(chatml, grammar, text) for text in valid)
    assert not any(accepts(chatml, grammar, text) for text in invalid)


DEEP = '{"items":' * 5000 + "{}" + "}" * 5000


@pytest.mark.parametrize(
    ("schema", "problem"), [*rows("refused_schemas"), pytest.param(DEEP, "it is nested too deeply", id="deep")]
)
def test_schema_that_cannot_be_used_is_refused_in_one_line(schema: Any, problem: str) -> None:
    with pytest.raises(GrammarError, match=r"^cannot use the schema: ") as caught:
        check_grammar(schema_grammar(schema))
    assert problem in caught.value.message and "\n" not in caught.value.message and caught.value.hint


def test_number_of_any_size_is_exact_or_refused() -> None:
    numbers = [number + 0.1 for number in range(1000)]
    assert outcomes({"enum": [*numbers, 10**22, 5e-324]}, "999.1") == (True, True)
    for huge in (10**400, [0.5, 10**400]):
        with pytest.raises(GrammarError, match="number out of range"):
            check_grammar(schema_grammar({"const": huge}))


@pytest.mark.parametrize(("pattern", "valid", "invalid"), rows("schema_patterns"))
def test_pattern_is_one_of_ecmascript(pattern: str, valid: list[str], invalid: list[str]) -> None:
    """As the whole string, as part of it, and as the name of a property."""
    names = {"type": "object", "patternProperties": {pattern: INTEGER}, "additionalProperties": False}
    for text in (*valid, *invalid):
        written = json.dumps(text, ensure_ascii=False)
        is_valid = text in valid
        assert all(outcomes({"type": "string", "pattern": pattern}, written)) == is_valid, text
        assert all(outcomes(names, f"{{{written}:1}}")) == is_valid, text


def test_fields_are_a_schema() -> None:
    schema = json.loads(schema_grammar("name: full, if known\nage int\ntags list[str]\n").text)
    assert schema["properties"] == {
        "name": {"type": "string", "description": "full, if known"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    }
    assert schema["required"] == ["name", "age", "tags"] and schema["additionalProperties"] is False
    assert list(json.loads(schema_grammar("größe float, नाम,").text)["properties"]) == ["größe", "नाम"]


@pytest.mark.slow
def test_reply_matches_its_json_schema(tiny_model: Path) -> None:
    ages = {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}
    properties = {"name": {"type": "string", "maxLength": 12}, "kind": {"enum": KINDS}, "ages": ages}
    closed = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    grammar = schema_grammar(closed)
    with open_engine(tiny_model, slots=4) as engine:
        said = ask(engine, STORY, n=4, grammar=grammar, temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
    for value in (json.loads(reply.text) for reply in said):
        assert list(value) == ["name", "kind", "ages"] and value["kind"] in KINDS
        assert all(isinstance(age, int) for age in value["ages"])


def test_grammar_that_fails_on_the_way_is_refused(chatml_model: Path) -> None:
    pattern = schema_grammar({"type": "string", "pattern": "^a{1000000000}$"})
    with open_engine(chatml_model) as engine, pytest.raises(GrammarError, match="rejects every possible next token"):
        ask(engine, "a", grammar=pattern, max_tokens=50)


class Color(Enum):
    RED = "red"


class Item(BaseModel):
    kind: Literal["item"]
    price: Decimal


class Node(BaseModel):
    kind: Literal["node"]
    children: list[Node] = []


class Page(BaseModel, Generic[T]):
    items: list[T]


@pytest.mark.parametrize(
    "field",
    [
        *(str, int, float, bool, Optional[str], list[int], dict[str, int], tuple[int, str], Color, Any),  # noqa: UP045
        *(date, datetime, time, timedelta, Decimal, UUID, IPv4Address, AnyUrl, Item, Node, Page[Item], Literal["a", 1]),
        Annotated[int, Field(ge=1, le=5)],
        Annotated[str, Field(pattern="^[A-Z]{3}$")],
        Annotated[list[str], Field(min_length=1, max_length=3)],
        Annotated[Item | Node, Field(discriminator="kind")],
    ],
)
def test_pydantic_models_are_schemas(field: Any) -> None:
    model = create_model("Model", field=(field, ...))
    check_grammar(schema_grammar(model))


@pytest.mark.parametrize(("schema", "valid", "invalid"), rows("checked_replies"))
def test_reply_of_a_server_is_checked_against_its_schema(schema: Any, valid: list[str], invalid: list[str]) -> None:
    grammar = schema_grammar(schema)
    check_grammar(grammar, is_local=False)
    assert [(reply, problem) for reply in valid if (problem := schema_problem(grammar, reply))] == []
    assert [reply for reply in invalid if not schema_problem(grammar, reply)] == []


def test_pattern_is_named_as_its_author_wrote_it() -> None:
    assert schema_problem(schema_grammar({"pattern": r"^\d$"}), '"a"') == r"'a' does not match '^\\d$'"
