"""JSON Schemas in the keywords that llguidance has, with the same meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

from cerebrum_cli.core.grammar import unusable
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.grammars.ecmascript import to_rust
from cerebrum_cli.grammars.one_of import one_of_as_any_of
from cerebrum_cli.grammars.strings import needs_control_character

# Keywords whose values are schemas by name, lists of schemas, and schemas.
BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLE = (
    *("items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else"),
    *("unevaluatedItems", "unevaluatedProperties"),
)
DATA = ("const", "enum", "default", "examples")  # whose values are no schemas
IN_PLACE = ("allOf", "anyOf", "oneOf")  # whose schemas apply to the same value
APPLICATORS = {*IN_PLACE, "$ref", "if", "dependentSchemas"}  # which may evaluate properties of the same value
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}  # of llguidance
STRICTER = {"idn-email": "email", "idn-hostname": "hostname", "iri": "uri", "iri-reference": "uri-reference"}
POINTER = "(?:/(?:[^/~]|~[01])*)*"
IN_PATH = "(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})"
PATTERNS = {  # of further formats
    "json-pointer": f"^{POINTER}$",
    "relative-json-pointer": f"^(?:0|[1-9][0-9]*)(?:#|{POINTER})$",
    "uri-reference": f"^(?:https?://[a-z0-9.]+)?(?:/?{IN_PATH}+(?:/{IN_PATH}*)*)?(?:\\?{IN_PATH}*)?(?:#{IN_PATH}*)?$",
    "uri-template": f"^(?:{IN_PATH}|[/:?]|\\{{[+#./;?&]?[A-Za-z0-9_]+(?:,[A-Za-z0-9_]+)*\\}})*$",
}
HINT = "fix or remove it, and state the rule in the prompt"


def with_known_keywords(schema: Any) -> Any:
    """A schema that accepts the same values, or a few less: some formats are replaced by stricter ones."""
    return _changed(schema, _known)


def with_any_of(schema: Any) -> Any:
    """A schema that accepts the same values, with `anyOf` for each `oneOf` of which no value matches two branches."""
    find_target = partial(_target, schema)
    return _changed(schema, lambda part: one_of_as_any_of(part, find_target))


def without_dialects(schema: Any) -> Any:
    """A schema without `$schema`, also where references lead: jsonschema would check such a part without our rules."""
    if isinstance(schema, list):
        return [without_dialects(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: inner if key in DATA else without_dialects(inner)
        for key, inner in schema.items()
        if key != "$schema" or not isinstance(inner, str)
    }


def require_usable(schema: Any) -> None:
    """Raise GrammarError for a regular expression that cannot be matched, and for a reference without an end."""
    _changed(schema, _with_patterns)
    finite = set[int]()
    for part in parts_of(schema):
        _require_end(schema, part, (), finite)


def _changed(part: Any, change: Callable[[JsonDict], JsonDict]) -> Any:
    """A schema, with each schema in it changed, the innermost first; other values, such as that of const, stay."""
    if not isinstance(part, dict):
        return part
    changed = dict(part)
    for key, value in part.items():
        if key in BY_NAME and isinstance(value, dict):
            changed[key] = {name: _changed(inner, change) for name, inner in value.items()}
        elif key in LISTS and isinstance(value, list):
            changed[key] = [_changed(inner, change) for inner in value]
        elif key in SINGLE:
            changed[key] = _changed(value, change)
    return change(changed)


def _known(part: JsonDict) -> JsonDict:
    for rule in RULES:
        part = rule(part)
    return part


def _with_references(part: JsonDict) -> JsonDict:
    """References are valid URIs, as `#/$defs/My Type` is not, and static: a schema of one file has no other scope."""
    part = {{"$dynamicRef": "$ref", "$dynamicAnchor": "$anchor"}.get(key, key): value for key, value in part.items()}
    reference = part.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        part["$ref"] = quote(reference, safe="#/%$:?&=@+,;!*'()~")
    return part


def _with_writable_patterns(part: JsonDict) -> JsonDict:
    for pattern in (part.get("pattern"), *part.get("patternProperties", ())):
        if isinstance(pattern, str) and needs_control_character(_translated(pattern)):
            raise unusable(f"pattern {pattern!r}: it matches no text without control characters", HINT)
    return part


def _with_patterns(part: JsonDict) -> JsonDict:
    if isinstance(pattern := part.get("pattern"), str):
        part["pattern"] = _translated(pattern)
    if isinstance(named := part.get("patternProperties"), dict):
        part["patternProperties"] = {_translated(pattern): value for pattern, value in named.items()}
    return part


def _translated(pattern: str) -> str:
    try:
        return to_rust(pattern)
    except ValueError as error:
        raise unusable(f"pattern {pattern!r}: {error}", HINT) from error


def _with_formats(part: JsonDict) -> JsonDict:
    """Formats that are not JSON Schema's only annotate."""
    name = part.get("format")
    if not isinstance(name, str):
        return part
    name = STRICTER.get(name, name)
    if name in FORMATS:
        return {**part, "format": name}
    part = _without(part, "format")
    if name in PATTERNS:
        part["allOf"] = [*part.get("allOf", ()), {"pattern": to_rust(PATTERNS[name])}]
    return part


def _with_names(part: JsonDict) -> JsonDict:
    """Where any name is allowed, without `propertyNames`; with one keyword on names, as properties of such names."""
    names = part.get("propertyNames")
    if names is True:
        names = {}
    if not isinstance(names, dict) or names.get("type", "string") != "string":
        return part
    rules = _without(names, "type")
    if not rules:
        return _without(part, "propertyNames")
    if len(rules) > 1 or part.keys() & {"properties", "patternProperties"}:
        return part
    value = part.get("additionalProperties", True)
    closed = {**_without(part, "propertyNames"), "additionalProperties": False}
    if "pattern" in rules:
        return {**closed, "patternProperties": {rules["pattern"]: value}}
    if "enum" in rules:
        return {**closed, "properties": {name: value for name in rules["enum"] if isinstance(name, str)}}
    return part


def _with_dependencies(part: JsonDict) -> JsonDict:
    """Properties that require others are absent, or the others are there."""
    needs = part.get("dependentRequired")
    if not isinstance(needs, dict):
        return part
    part = _without(part, "dependentRequired")
    for name, others in needs.items():
        either = {"anyOf": [{"properties": {name: False}}, {"required": others}]}
        part["allOf"] = [*part.get("allOf", ()), either]
    return part


def _without_effect(part: JsonDict) -> JsonDict:
    """Without keywords that allow everything, and with `additionalProperties` where it means the same."""
    if part.get("uniqueItems") is False:
        part = _without(part, "uniqueItems")
    if "contains" not in part:
        part = _without(part, "minContains", "maxContains")
    if "if" not in part:
        part = _without(part, "then", "else")
    elif not part.keys() & {"then", "else"}:
        part = _without(part, "if")
    unevaluated = part.get("unevaluatedProperties", True)
    if unevaluated in (True, {}) or "additionalProperties" in part:
        return _without(part, "unevaluatedProperties")
    if not part.keys() & APPLICATORS:
        part = {**_without(part, "unevaluatedProperties"), "additionalProperties": unevaluated}
    return part


def _without(part: JsonDict, *names: str) -> JsonDict:
    return {key: value for key, value in part.items() if key not in names}


RULES = (
    *(_with_references, _without_effect, _with_writable_patterns, _with_patterns, _with_names, _with_formats),
    _with_dependencies,
)


# References without an end.


def _require_end(schema: Any, part: Any, passed: tuple[int, ...], finite: set[int]) -> None:
    """Raise GrammarError if a schema refers back to itself for the same value, so that matching never ends."""
    if not isinstance(part, dict) or id(part) in finite:
        return
    if id(part) in passed:
        reference = part.get("$ref", "#")
        raise unusable(f"the $ref {reference!r} refers to itself", "describe the value, for example with `type`")
    if isinstance(reference := part.get("$ref"), str):
        _require_end(schema, _target(schema, reference), (*passed, id(part)), finite)
    for key in IN_PLACE:
        for inner in part.get(key) or ():
            _require_end(schema, inner, (*passed, id(part)), finite)
    finite.add(id(part))


def _target(schema: Any, reference: str) -> Any:
    """What a reference within a schema refers to; None for another one."""
    if not reference.startswith("#") or (reference != "#" and reference[1] != "/"):
        return None
    target = schema
    for name in unquote(reference[1:]).split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        elif isinstance(target, dict):
            target = target.get(name)
        else:
            return None
    return target


def parts_of(part: Any) -> Iterator[JsonDict]:
    """All schemas in a schema, itself first."""
    if not isinstance(part, dict):
        return
    yield part
    for key, value in part.items():
        inner: list[Any] = [value] if key in SINGLE else []
        if key in BY_NAME and isinstance(value, dict):
            inner = list(value.values())
        elif key in LISTS and isinstance(value, list):
            inner = value
        for each in inner:
            yield from parts_of(each)
