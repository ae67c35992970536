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
from cerebrum_cli.grammars.guidance import check_grammar, compile_grammar, is_allowed
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
DRAFTS = "https://json-schema.org/draft/"
OTHERS = {  # properties that no keyword evaluates
    "patternProperties": {r"^\p{L}$": INTEGER},
    "allOf": [{"$ref": "#/definitions/B"}, {"anyOf": [{"required": ["x"], "properties": {"zz": True}}, {}]}],
    "dependentSchemas": {"é": {"properties": {"dd": True}}},
    "if": {"properties": {"k": {"const": 1}}, "required": ["k"]},
    "then": {"properties": {"aa": True}},
    "else": {"properties": {"qq": True}},
    "definitions": {"B": {"properties": {"bb": True}}},
    "unevaluatedProperties": False,
}
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
        ({"type": "string", "pattern": "a[b"}, "character class without an end at character 2"),
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


def tagged(value: Any, **others: Any) -> dict[str, Any]:
    """The schema of an object with a property that tells it from others."""
    return {"type": "object", "properties": {"k": {"const": value}, **others}, "required": ["k"]}


TAGGED = {"1": tagged(1), "2": {"allOf": [{"$ref": "#/$defs/any"}, tagged(2)]}, "any": {"type": "object"}}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ['"a"', "1"], ["1.5"]),
        ({"oneOf": [{"const": 1}, {"enum": [2.5, "a"]}, {"const": True}]}, ["1", "2.5", '"a"', "true"], ["2", "false"]),
        ({"oneOf": [tagged(1), tagged(2, x=INTEGER)]}, ['{"k":1,"x":null}', '{"k":2,"x":1}'], ['{"k":2,"x":null}']),
        ({"oneOf": [{"$ref": "#/$defs/1"}, {"$ref": "#/$defs/2"}], "$defs": TAGGED}, ['{"k":2}'], ['{"k":3}']),
        ({"oneOf": [{"anyOf": [tagged(1), tagged([2])]}, tagged([3])]}, ['{"k":[2]}'], ['{"k":[4]}']),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b", "c"]}]}, ['{"a":1,"c":2}', '{"b":1,"c":1}'], ["{}", "1"]),
        ({"oneOf": [{"type": "integer", "maximum": 4}, {"type": "number", "minimum": 5}]}, ["4", "5.5"], ["4.5"]),
        (
            {**tagged(1), "oneOf": [{"properties": {"n": {"const": n}}, "required": ["n"]} for n in (1, 2)]},
            ['{"k":1,"n":2}'],
            ['{"k":1}', '{"k":1,"n":3}'],
        ),
    ],
)
def test_one_of_whose_schemas_exclude_each_other_is_exact(schema: Any, valid: list[str], invalid: list[str]) -> None:
    grammar = schema_grammar(schema)
    check_grammar(grammar)
    for text in (*valid, *invalid):
        assert is_allowed(grammar, text.encode(), is_whole=True) == (text in valid), text
        assert (problem_of(grammar.text, text) is None) == (text in valid), text


@pytest.mark.parametrize(
    "branches",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{"const": 1}, {"const": 1.0}],
        [tagged(1), {"type": "object", "properties": {"k": {"type": "integer"}}}],
        [{"properties": {"k": {"const": n}}, "required": ["k"]} for n in (1, 2)],  # as any string matches
        [{"type": "array", "items": INTEGER}, {"type": "array", "items": {"type": "string"}}],
    ],
)
def test_one_of_whose_schemas_may_overlap_is_refused(branches: list[Any]) -> None:
    schema = {"properties": {"a": {"properties": {"b": {"oneOf": branches}}}}}
    with pytest.raises(GrammarError, match=r"^cannot use the schema: a\.b: several schemas of a oneOf may ") as caught:
        check_grammar(schema_grammar(schema))
    assert caught.value.hint.startswith("use anyOf, or ")
    check_grammar(schema_grammar(schema), is_local=False)


VALUES = [1, 2, 1.5, "a", "ab", None, True, [1], {"k": 1}, {"k": 2}, {"a": 1}, {"a": 1, "b": "a"}, {"k": 1, "b": 2}]
BRANCHES = st.recursive(
    st.one_of(
        st.sampled_from(VALUES).map(lambda value: {"const": value}),
        st.lists(st.sampled_from(VALUES), min_size=1, max_size=2).map(lambda values: {"enum": values}),
        st.sampled_from(["integer", "number", "string", "object", "null"]).map(lambda name: {"type": name}),
        st.sampled_from([{"required": ["a"]}, {"required": ["k", "b"], "type": "object"}, {"maximum": 1}]),
        st.sampled_from([{"minimum": 2, "type": "number"}, {"maxLength": 1, "type": "string"}, {"minLength": 2}]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"allOf": parts}),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts}),
        inner.map(lambda part: {"type": "object", "properties": {"k": part}, "required": ["k"]}),
        inner.map(lambda part: {"properties": {"b": part}, "additionalProperties": False}),
    ),
    max_leaves=4,
)


@pytest.mark.slow
@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(BRANCHES, min_size=2, max_size=3), st.sampled_from([{}, {"type": "object"}, {"required": ["k"]}]))
def test_one_of_never_allows_what_it_does_not_accept(branches: list[Any], beside: dict[str, Any]) -> None:
    grammar = schema_grammar({**beside, "oneOf": branches})
    try:
        check_grammar(grammar)
    except GrammarError:
        return
    for value in VALUES:
        text = json.dumps(value, separators=(",", ":"))
        if is_allowed(grammar, text.encode(), is_whole=True):
            assert problem_of(grammar.text, text) is None, text


@pytest.mark.parametrize("pattern", [r"^\v$", r"\x01", r"^[a-z]{3}\u0000", r"^\x7f+$"])
def test_pattern_that_needs_a_control_character_is_refused(pattern: str) -> None:
    """JSON writes them only as `\\u`, which a model must not begin where it means another character."""
    schemas: list[Any] = [{"pattern": pattern}, {"properties": {"a": {"patternProperties": {pattern: {}}}}}]
    for schema in schemas:
        with pytest.raises(GrammarError, match="it matches no text without control characters"):
            check_grammar(schema_grammar(schema))
        check_grammar(schema_grammar(schema), is_local=False)
    check_grammar(schema_grammar({"pattern": r"^[^\x00-\x1f]*\s\t\n$"}))


def test_number_of_any_size_is_exact_or_refused() -> None:
    numbers = [number + 0.1 for number in range(1000)]
    grammar = schema_grammar({"enum": [*numbers, 10**22, 5e-324]})
    check_grammar(grammar)
    assert is_allowed(grammar, b"999.1", is_whole=True) and is_allowed(grammar, b"1" + b"0" * 22, is_whole=True)
    for huge in (10**400, [0.5, 10**400]):
        with pytest.raises(GrammarError, match="number out of range"):
            check_grammar(schema_grammar({"const": huge}))


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
        (r"^[\]a]$", ["]"], ["["]),
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
    check_grammar(schema_grammar(model))


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "string", "pattern": "^(a+)+$"}, ['"aaa"'], [f'"{"a" * 50}!"']),
        ({"type": "string", "pattern": r"^\p{L}\d$"}, ['"é1"'], ['"é٣"', '"é1\\n"']),
        ({"type": "string", "format": "date-time"}, ['"2026-01-01T00:00:00Z"'], ['"noon"']),
        ({"type": "string", "format": "path"}, ['"anything"'], ["1"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2025-02-29"']),
        ({"type": "string", "format": "date-time"}, ['"2024-02-29T00:00:00Z"'], ['"2025-02-29T00:00:00Z"']),
        (
            {"type": "string", "format": "regex"},
            ['"[a[]"', r'"\\p{L}"', '"(?=a)"', r'"(?<x>a)\\k<x>"'],
            ['"["', '"("', '"a**"', r'"\\A"'],
        ),
        ({"pattern": "^[^a]*$"}, [r'"\u0001"', r'"\u000a\u007f"', '"\x7f"', r'"\u0062"'], [r'"\u0061"']),
        ({"pattern": r"^\v\x7f$"}, [r'"\u000b\u007f"'], ['"v"']),
        (
            OTHERS,
            ['{"é":1,"bb":2,"dd":3,"qq":4}', '{"k":1,"aa":null}', '{"x":1,"zz":null}'],
            ['{"é":"a"}', '{"zz":1}', '{"k":1,"qq":1}', '{"aa":1}', '{"dd":1}'],
        ),
        ({"$schema": DRAFTS + "2019-09/schema", **OTHERS}, ['{"é":1}'], ['{"zz":1}']),
        ({"$schema": "http://json-schema.org/draft-07/schema#", **OTHERS}, ['{"zz":1}'], ['{"é":"a"}']),
        ({"items": {"$schema": DRAFTS + "2020-12/schema", "pattern": r"^\p{L}$"}}, ['["é"]'], ['["1"]']),
        (
            {
                "$ref": "#/components/schemas/A",
                "components": {"schemas": {"A": {"$schema": DRAFTS + "2020-12/schema", "pattern": r"^\p{L}$"}}},
            },
            ['"é"'],
            ['"1"'],
        ),
        (
            {"properties": {"$schema": {"type": "string"}}, "enum": [{"$schema": "x"}]},
            ['{"$schema":"x"}'],
            ['{"$schema":1}', "{}"],
        ),
        (
            {
                "$ref": "#name",
                "$defs": {"A": {"$anchor": "name", "patternProperties": {r"^\p{L}$": True}}},
                "unevaluatedProperties": INTEGER,
            },
            ['{"é":"x","cc":1}'],
            ['{"cc":"x"}'],
        ),
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
