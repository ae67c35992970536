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
NAMED = {"type": "object", "properties": {"größe": {"type": "integer"}}, "required": ["größe"]}
TREE = {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}}}}
NULLABLE = {"type": ["array", "null"], "items": {"type": "integer"}, "maxItems": 2}
INTEGER = {"type": "integer"}
DRAFT_7, DRAFT_2019 = "http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2019-09/schema"
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
        ({"format": "time", "allOf": [{"maxLength": 30}]}, ['"12:30:00.123456789Z"', "5"], ['"12:30:00.1234567890Z"']),
        ({"items": {"format": "date-time"}}, ['["2026-01-01T12:30:00.5Z"]'], [f'["2026-01-01T12:30:00.{"5" * 10}Z"]']),
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
        ({"properties": {"a": {"properties": {"b": {"uniqueItems": True, "type": "array"}}}}}, '["uniqueItems"]'),
        ({"properties": {"t": {"$ref": "#/$defs/T"}}, "$defs": {"T": {"not": {}}}}, 'Unimplemented keys: ["not"]'),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "pattern": r"^(a)\1$"}, "backreferences"),
        ({"type": "string", "pattern": r"\Aa\Z"}, "unrecognized escape sequence"),
        ({"type": "string", "pattern": "a[b"}, "pattern 'a[b': unterminated character set"),
        ({"type": "string", "pattern": r"^\p{L}$"}, r"bad escape \p"),
        ({"type": "string", "pattern": r"^[a{]{,2}{b}$"}, "repetition quantifier expects a valid decimal"),
        ({"properties": {"a": {"format": "binary"}, "b": {"format": "regex"}}}, "Unknown format: regex"),
        ({"propertyNames": {"pattern": "^[a-z]+$"}}, '["propertyNames"]'),
        ({"properties": {"a": True}, "unevaluatedProperties": False}, '["unevaluatedProperties"]'),
        ({"$ref": "#/$defs/a b", "$defs": {"a b": {}}}, "Invalid URI reference '#/$defs/a b'"),
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


def outcomes(schema: Any, text: str) -> tuple[bool, bool]:
    """Whether a local model can write a text, and whether it is then found to match the schema."""
    grammar = schema_grammar(schema)
    check_grammar(grammar)
    return is_allowed(grammar, text.encode(), is_whole=True), schema_problem(grammar, text) is None


def tagged(value: Any, **others: Any) -> dict[str, Any]:
    """The schema of an object with a property that tells it from others."""
    return {"type": "object", "properties": {"k": {"const": value}, **others}, "required": ["k"]}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ['"a"', "1"], ["1.5"]),
        ({"oneOf": [tagged(1), tagged(2, x=INTEGER)]}, ['{"k":1,"x":null}', '{"k":2,"x":1}'], ['{"k":2,"x":null}']),
        ({"oneOf": [INTEGER, {"type": "number"}]}, ["1.5"], ["1", '"a"']),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a":1}', '{"b":1}'], ['{"a":1,"b":1}', "{}"]),
        ({"items": {"oneOf": [{"minimum": 2}, {"maximum": 2}]}}, ["[1,3]"], ["[2]"]),
    ],
)
def test_answer_that_matches_two_schemas_of_a_one_of_is_invalid(
    schema: Any, valid: list[str], invalid: list[str]
) -> None:
    assert [text for text in valid if outcomes(schema, text) != (True, True)] == []
    assert [text for text in invalid if all(outcomes(schema, text))] == []


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"const": 2**53 + 1}, str(2**53)),
        ({"type": "string", "pattern": "^.$"}, '"\u2028"'),
        ({"type": "string", "pattern": "^[a-z&&[^b]]$"}, '"a"'),
        ({"type": "string", "pattern": "^[]a]$"}, '"a"'),
        ({"type": "string", "pattern": "^[^]a]$"}, '"b"'),
        ({"type": "string", "format": "date-time"}, '"2025-02-29T00:00:00Z"'),
    ],
)
def test_answer_that_llguidance_allows_against_json_schema_is_invalid(schema: Any, text: str) -> None:
    assert outcomes(schema, text) == (True, False)


def test_number_of_any_size_is_exact_or_refused() -> None:
    numbers = [number + 0.1 for number in range(1000)]
    assert outcomes({"enum": [*numbers, 10**22, 5e-324]}, "999.1") == (True, True)
    for huge in (10**400, [0.5, 10**400]):
        with pytest.raises(GrammarError, match="number out of range"):
            check_grammar(schema_grammar({"const": huge}))


@pytest.mark.parametrize(
    ("pattern", "valid", "invalid"),
    [
        (r"^\d\w[\s-]$", ["1a\u00a0", "2_-"], ["\u0663a ", "1é ", "11\x85"]),
        (r"^\S$", ["a"], [" ", "\ufeff"]),
        ("^.$", ["a", "é", "😀", "\u0085"], ["\n", "\r", "\u2028"]),
        (r"^\x41\u00e9\/\-[.$]$", ["Aé/-.", "Aé/-$"], ["Aé/-a", "Aé/-.\n"]),
        (r"^(?:0?1)??$", ["01", ""], ["2026"]),
        (r"^[\]a]$", ["]"], ["["]),
    ],
)
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
    check_grammar(schema_grammar(model))


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "string", "pattern": r"^é\d$"}, ['"é1"', r'"\u00e91"'], ['"é٣"', r'"é1\n"']),
        ({"type": "string", "pattern": r"^(?=.*a)b"}, ['"ba"'], ['"b"']),
        ({"type": "string", "format": "date-time"}, ['"2024-02-29T00:00:00Z"'], ['"2025-02-29T00:00:00Z"', '"noon"']),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2025-02-29"']),
        ({"type": "string", "format": "time"}, ['"12:30:00.1234567890123Z"'], ['"12:30:00.1234567890123"']),
        ({"type": ["string", "null"], "format": "uri"}, ['"https://a.b/c"', "null"], ['"c"']),
        ({"type": "string", "format": "path"}, ['"anything"'], ["1"]),
        ({"type": "string", "format": "regex"}, ['"[a[]"', '"(?=a)"'], ['"["', '"a**"']),
        (
            {"$schema": DRAFT_2019, "patternProperties": {"^.$": {"$ref": "#/$defs/a"}}, "unevaluatedProperties": False}
            | {"$defs": {"a": {"$schema": DRAFT_2019, "pattern": r"^\w$"}}},
            ['{"é":"a"}'],
            ['{"é":"é"}', '{"ab":"a"}'],
        ),
        ({"$schema": DRAFT_7, "unevaluatedProperties": False}, ['{"a":1}'], []),
        (
            {"properties": {"pattern": {"type": "string"}}, "enum": [{"pattern": "^a$"}]},
            ['{"pattern":"^a$"}'],
            ['{"pattern":1}', "{}"],
        ),
        ({"multipleOf": 0.01}, ["19.99", "0.3"], ["0.005", "1e999"]),
        ({"type": "integer"}, ["5.0", "1e3"], ["5.5", "1e999999999", "NaN"]),
        ({"required": ["a", "b"]}, ['{"b":1,"a":2}'], ['{"a":2}', '{"a":2,"b":1} ok']),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, [], ["{}"]),
        ({"$ref": "#"}, [], ["{}"]),
    ],
)
def test_reply_of_a_server_is_checked_against_its_schema(schema: Any, valid: list[str], invalid: list[str]) -> None:
    grammar = schema_grammar(schema)
    check_grammar(grammar, is_local=False)
    assert [(reply, problem) for reply in valid if (problem := schema_problem(grammar, reply))] == []
    assert [reply for reply in invalid if not schema_problem(grammar, reply)] == []


def test_pattern_is_named_as_its_author_wrote_it() -> None:
    assert schema_problem(schema_grammar({"pattern": r"^\d$"}), '"a"') == r"'a' does not match '^\\d$'"
