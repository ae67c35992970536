"""JSON Schema, regular expressions and Lark grammars: which texts a vocabulary can write, and what is refused."""

from __future__ import annotations

import json
import re
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
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_engines import STORY, open_engine
from pydantic import AnyUrl, BaseModel, Field, create_model

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.grammar import Grammar, schema_grammar
from cerebrum_cli.engine.llama.vocabulary import LlamaVocabulary
from cerebrum_cli.grammars.guidance import ONE_OF_NOTICE, check_grammar, compile_grammar, is_allowed, translate
from cerebrum_cli.grammars.validation import problem_of

T = TypeVar("T")
KINDS = ["fox", 'wolf "grey"', "back\\slash\n", "größe", "猫", None]
NAMED = {"type": "object", "properties": {"größe": {"type": "integer"}}, "required": ["größe"]}
TREE = {
    "$ref": "#/$defs/my tree",
    "$defs": {"my tree": {"type": "object", "properties": {"next": {"$ref": "#/$defs/my tree"}}}},
}
NULLABLE = {"type": ["array", "null"], "items": {"type": "integer"}, "maxItems": 2}
INTEGER = {"type": "integer"}
DYNAMIC = {"any": {"$dynamicAnchor": "n", "type": "integer"}}
CLOSED = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}


def accepts(vocabulary: LlamaVocabulary, grammar: Grammar, text: str) -> bool:
    """Whether the vocabulary can write a text as the whole answer."""
    matcher = compile_grammar(grammar, vocabulary.guidance_tokenizer)
    tokens = list(vocabulary.tokenize((Text(text),)))
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"enum": KINDS}, [json.dumps(kind, ensure_ascii=False) for kind in KINDS], ['"猪"', '"Fox"', "nul"]),
        (NAMED, ['{"größe":1}', '{"größe": 1}', '{"größe": 1, "b": "c"}'], ["{}", '{"größe": "1"}']),
        (TREE, ["{}", '{"next":{"next":{}}}'], ['{"next":1}']),
        (NULLABLE, ["null", "[]", "[1, 2]", "[1,2]"], ["[1, 2, 3]", '["x"]']),
        (CLOSED, ["{}", '{"a":1}'], ['{"b":1}', '{"a":1,"a":2}']),
        ({**CLOSED, "additionalProperties": True}, ['{"a":1,"b":"c"}'], [r'{"\u0061":"x"}']),
        ({"const": {"$ref": "a b"}}, ['{"$ref":"a b"}'], []),
        ({"type": "string", "pattern": r"^\[[a-z]+]$"}, ['"[ab]"'], ['"[]"', '"[a"']),
        ({"type": "string", "pattern": r"^[^\"]+\\?$"}, ['"a"', '"a\\\\"'], ['""']),
        ({"type": "string", "format": "date", "maxLength": 10}, ['"2026-02-28"'], ['"2026-13-01"', '"today"']),
        ({"type": "integer", "minimum": 5, "exclusiveMaximum": 12}, ["5", "11"], ["4", "12", "1e1"]),
        ({"type": "number", "multipleOf": 0.5}, ["0.5", "2"], ["0.3"]),
        ({"allOf": [CLOSED, {"required": ["a"]}]}, ['{"a":1}'], ["{}"]),
        ({"properties": {"a": True}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a":1}'], ["{}"]),
        ({"type": "array", "prefixItems": [{"const": "ü"}], "items": False}, ["[]", '["ü"]'], ['["u"]', '["ü", 1]']),
        ({"type": "object", "patternProperties": {"^x_": {"type": "boolean"}}}, ['{"x_a":true}'], ['{"x_a":1}']),
        (True, ['"a"', '{"a":1}'], ["a"]),
        ("true", ["1"], ["a"]),
        ({"const": {"a": None, "$ref": "#a b"}}, ['{"a":null,"$ref":"#a b"}'], ["{}"]),
        ({"enum": [2**53, 2**60, 0.1]}, [str(2**53), str(2**60), "0.1"], [str(2**60 + 1)]),
        ({"type": "string", "format": "iban"}, ['"anything"'], ["1"]),
        ({"type": "string", "format": "json-pointer"}, ['"/a/b~1"', '""'], ['"a"', '"/~"']),
        ({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": INTEGER}, ['{"a b":1}'], []),
        ({"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}, ['{"a":null}'], ['{"A":1}']),
        (
            {"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": INTEGER},
            ['{"b":1}'],
            ['{"c":1}', '{"b":"1"}'],
        ),
        (
            {"properties": {"a": True, "b": True}, "dependentRequired": {"a": ["b"]}},
            ["{}", '{"b":1}', '{"a":1,"b":1}'],
            ['{"a":1}'],
        ),
        ({**CLOSED, "unevaluatedProperties": False, "if": {}}, ['{"a":1}'], ['{"b":1}']),
        (
            {"type": "array", "uniqueItems": False, "items": {"$dynamicRef": "#n"}, "$defs": DYNAMIC},
            ["[1,1]"],
            ['["a"]'],
        ),
    ],
)
def test_vocabulary_writes_what_a_schema_allows(
    chatml: LlamaVocabulary, schema: Any, valid: Iterable[str], invalid: Iterable[str]
) -> None:
    grammar = schema_grammar(schema)
    assert [text for text in valid if not accepts(chatml, grammar, text)] == []
    assert [text for text in invalid if accepts(chatml, grammar, text)] == []


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


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ("{", "Expecting property name"),
        ([], "it is not a JSON object"),
        ({"type": "nope"}, "type: 'nope' is not one of"),
        ({"$ref": "https://example.com/a"}, "is not present in a registry"),
        ({"properties": {"a": {"properties": {"b": {"uniqueItems": True, "type": "array"}}}}}, "a.b: Unimplemented"),
        ({"properties": {"t": {"$ref": "#/$defs/T"}}, "$defs": {"T": {"not": {}}}}, 't: Unimplemented keys: ["not"]'),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "pattern": r"^(a)\1$"}, "backreferences"),
        ({"type": "string", "pattern": r"\Aa\Z"}, r"\A is not an ECMAScript escape"),
        ({"type": "string", "pattern": "a++"}, "nothing to repeat before '+'"),
        ({"properties": {"n": {"const": 2**53 + 1}}}, "const: the number 9007199254740993 has too many digits"),
        ({"enum": [{"a": [1, 10**30 + 1]}]}, "enum: the number 1000000000000000000000000000001 has too many digits"),
        ({"$ref": "#"}, "the $ref '#' refers to itself"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "refers to itself"),
        ({"items": {"$ref": "#/$defs/a~1b"}, "$defs": {"a/b": {"$ref": "#/$defs/a~1b"}}}, "refers to itself"),
        ({"type": "object", "required": True}, "required: True is not of type 'array'"),
        (False, "no answer matches the schema false"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "Unimplemented keys"),
        ('{"items":' * 5000 + "{}" + "}" * 5000, "it is nested too deeply"),
        ({"const": "\ud800"}, "surrogates not allowed"),
        ({"const": float("nan")}, "not JSON compliant"),
        ("schema.json", "'schema.json' is neither a JSON object nor fields"),
        ("name, age nope", "unknown type 'nope' of field 'age'"),
        ("name, name int", "the field 'name' occurs twice"),
        ("a b c", "invalid field 'a b c'"),
        (" ,", "it has no fields"),
    ],
)
def test_schema_that_cannot_be_used_is_refused_in_one_line(schema: Any, problem: str) -> None:
    with pytest.raises(GrammarError, match=r"^cannot use the schema: ") as caught:
        check_grammar(schema_grammar(schema))
    assert problem in caught.value.message and "\n" not in caught.value.message and caught.value.hint


def test_one_of_is_taken_as_any_of_with_a_notice() -> None:
    texts = {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}
    assert translate(schema_grammar(texts))[1] == ONE_OF_NOTICE
    assert translate(schema_grammar({"oneOf": [{"type": "string"}, {"type": "integer"}]}))[1] is None


@pytest.mark.parametrize(
    ("pattern", "valid", "invalid"),
    [
        ("^[a-z&&[^b]]$", ["a]", "b]", "&]", "[]", "^]"], ["a", "c", "]"]),
        ("^[a~~b+--]$", ["~", "b", "+", "-"], ["d", "."]),
        ("^a{,2}$", ["a{,2}"], ["", "a", "aa"]),
        ("^{a}]$", ["{a}]"], []),
        (r"^\d\w\s$", ["1a\u00a0", "2_\ufeff"], ["\u0663a ", "1é "]),
        ("^.$", ["a", "é", "😀", "\u0085"], ["\n", "\r", "\u2028"]),
        (r"^[^]$", ["a", "\n"], [""]),
        (r"^\u{1F600}\ud83d\ude00\x41\cJ\/\-$", ["😀😀A\n/-"], []),
        (r"^[\w-z\b]$", ["a", "-", "\b"], ["."]),
        (r"^(?<year>\d{4})-(?:0?1)??$", ["2026-01", "2026-"], ["2026"]),
        (r"^\p{Lu}$", ["É"], ["é"]),
        (r"^(?i)abc$", ["aBC"], ["abd"]),
    ],
)
def test_pattern_is_one_of_ecmascript(pattern: str, valid: list[str], invalid: list[str]) -> None:
    """Here, and where a whole answer is checked."""
    grammar = schema_grammar({"type": "string", "pattern": pattern})
    for text in (*valid, *invalid):
        answer = json.dumps(text, ensure_ascii=False)
        expected = text in valid
        assert is_allowed(grammar, answer.encode(), is_whole=True) == (problem_of(grammar.text, answer) is None)
        assert is_allowed(grammar, answer.encode(), is_whole=True) == expected, text


PIECES = st.sampled_from(
    [*"ab-&[]{},.^()|?*+ é", r"\d", r"\w", r"\s", r"\]", "[a&&b]", "[^a]", "[--a]", "{2}", "{,2}", "(?:", r"\u00e9"]
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.lists(PIECES, max_size=6).map("".join), st.lists(st.text("ab-&[]{,2 é", max_size=4), min_size=4, max_size=4))
def test_pattern_means_the_same_as_in_python_or_is_refused(pattern: str, texts: list[str]) -> None:
    """Python's syntax is that of ECMAScript here, but for `{,2}`, empty classes, and what it warns of."""
    try:
        expected = re.compile(pattern.replace("{,", r"\{,"), re.ASCII)
        grammar = schema_grammar({"type": "string", "pattern": pattern})
        check_grammar(grammar)
    except (re.error, GrammarError, FutureWarning):
        return
    for text in texts:
        answer = json.dumps(text, ensure_ascii=False)
        assert is_allowed(grammar, answer.encode(), is_whole=True) == bool(expected.search(text)), text


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
    schema = {**CLOSED, "properties": properties, "required": ["name", "kind", "ages"]}
    grammar = schema_grammar(schema)
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
    _, notice = translate(schema_grammar(model))
    assert notice is None


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "string", "pattern": "^(a+)+$"}, ['"aaa"'], [f'"{"a" * 50}!"']),
        ({"type": "string", "pattern": r"^\p{L}\d$"}, ['"é1"'], ['"é٣"', '"é1\\n"']),
        ({"type": "string", "format": "date-time"}, ['"2026-01-01T00:00:00Z"'], ['"noon"']),
        ({"type": "string", "format": "path"}, ['"anything"'], ["1"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2025-02-29"']),
        ({"type": "string", "format": "date-time"}, ['"2024-02-29T00:00:00Z"'], ['"2025-02-29T00:00:00Z"']),
        ({"type": "string", "format": "regex"}, ['"[a[]"'], ['"["']),
        (
            {"patternProperties": {"^[a&&[b]$": {"type": "null"}}, "additionalProperties": False},
            ['{"[":null}'],
            ['{"[":1}'],
        ),
        ({"multipleOf": 0.01}, ["19.99", "0.3"], ["0.005", "1e999"]),
        ({"type": "integer"}, ["5.0", "1e3"], ["5.5", "1e999999999", "NaN"]),
        ({"required": ["a", "b"]}, ['{"b":1,"a":2}'], ['{"a":2}', '{"a":2,"b":1} ok']),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, [], ["{}"]),
    ],
)
def test_reply_of_a_server_is_checked_against_its_schema(schema: Any, valid: list[str], invalid: list[str]) -> None:
    text = json.dumps(schema)
    assert [(reply, problem) for reply in valid if (problem := problem_of(text, reply))] == []
    assert [reply for reply in invalid if not problem_of(text, reply)] == []
