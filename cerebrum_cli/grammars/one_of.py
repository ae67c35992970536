"""`oneOf` as `anyOf`, which llguidance has, where both accept the same values; it finds only some of these cases.

A value has to match all *conjuncts* of a schema: itself, what it refers to, and what its `allOf` has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from itertools import combinations, product
from math import inf
from typing import Any, NamedTuple

from cerebrum_cli.core.json_types import JsonDict

TYPES = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
TYPE_NAMES = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object", type(None): "null"}
RANGES = (  # the keywords of the largest and the smallest value, and the types of such values
    ("maximum", "minimum", {"integer", "number"}),
    ("maxLength", "minLength", {"string"}),
    ("maxItems", "minItems", {"array"}),
    ("maxProperties", "minProperties", {"object"}),
)
ANNOTATIONS = {"title", "description", "$comment"}

FindTarget = Callable[[str], Any]  # what a reference within the schema refers to


def one_of_as_any_of(part: JsonDict, find_target: FindTarget) -> JsonDict:
    """A schema whose `oneOf` is replaced if no value can match two of its branches."""
    branches = part.get("oneOf")
    if not isinstance(branches, list) or "anyOf" in part:
        return part
    rest = {key: value for key, value in part.items() if key != "oneOf"}
    if all(map(_only_requires, branches)):
        return {**rest, "anyOf": [_requiring_only(branch, branches) for branch in branches]}
    whole = [{**rest, "allOf": [*rest.get("allOf", ()), branch]} for branch in branches]
    exclusion = _Exclusion(find_target)
    if all(exclusion.is_shown(left, right) for left, right in combinations(whole, 2)):
        return {**rest, "anyOf": branches}
    return part


def _only_requires(branch: Any) -> bool:
    """Whether a schema only names properties, such as one of which is needed."""
    return (
        isinstance(branch, dict)
        and bool(branch.get("required"))
        and branch.get("type", "object") == "object"
        and branch.keys() <= {"required", "type", *ANNOTATIONS}
    )


def _requiring_only(branch: JsonDict, branches: Sequence[JsonDict]) -> JsonDict:
    """Requires the properties of a branch, and lacks one of each other branch."""
    lacking = [
        {"anyOf": [{"properties": {name: False}} for name in other["required"]]}
        for other in branches
        if other is not branch
    ]
    return {"type": "object", "required": branch["required"], "allOf": lacking}


class _Facts(NamedTuple):
    """What holds for all values that match a schema; `values` are the only ones, if they are listed."""

    conjuncts: Sequence[JsonDict]
    types: Set[str]
    values: Sequence[Any] | None
    required: Set[str]


class _Exclusion:
    """Shows that no value matches two schemas; that it cannot show it proves nothing."""

    def __init__(self, find_target: FindTarget) -> None:
        self._find_target = find_target
        self._facts: dict[int, _Facts] = {}  # by the identity of a schema
        self._shown: dict[tuple[int, int], bool] = {}  # of two schemas; False while it is searched for

    def is_shown(self, left: Any, right: Any) -> bool:
        if left is False or right is False:
            return True
        pair = id(left), id(right)
        if pair not in self._shown:
            self._shown[pair] = False
            self._shown[pair] = self._can_show(left, right)
        return self._shown[pair]

    def _can_show(self, left: Any, right: Any) -> bool:
        lefts, rights = self._facts_of(left), self._facts_of(right)
        types = lefts.types & rights.types
        if not types:
            return True
        if lefts.values is not None and rights.values is not None:
            return not any(value in rights.values for value in lefts.values)
        return (
            any(_are_apart(*pair, types) for pair in product(lefts.conjuncts, rights.conjuncts))
            or any(_are_apart(*pair, types) for pair in product(rights.conjuncts, lefts.conjuncts))
            or (types == {"object"} and self._differ_in_a_property(lefts, rights))
            or self._alternatives_exclude(lefts, right)
            or self._alternatives_exclude(rights, left)
        )

    def _facts_of(self, part: Any) -> _Facts:
        if id(part) not in self._facts:
            conjuncts = list(self._conjuncts(part, set()))
            values = next((values for inner in conjuncts if (values := _values(inner)) is not None), None)
            types = TYPES.intersection(*map(_types, conjuncts))
            required = {name for inner in conjuncts for name in inner.get("required", ())}
            self._facts[id(part)] = _Facts(conjuncts, types, values, required)
        return self._facts[id(part)]

    def _conjuncts(self, part: Any, found: set[int]) -> Iterator[JsonDict]:
        if not isinstance(part, dict) or id(part) in found:
            return
        found.add(id(part))
        yield part
        inner = list(part.get("allOf", ()))
        if isinstance(reference := part.get("$ref"), str):
            inner.append(self._find_target(reference))
        for other in inner:
            yield from self._conjuncts(other, found)

    def _differ_in_a_property(self, lefts: _Facts, rights: _Facts) -> bool:
        """Whether a property that one of both requires cannot match both."""
        return any(
            self.is_shown(_property(left, name), _property(right, name))
            for left, right in product(lefts.conjuncts, rights.conjuncts)
            for name in lefts.required | rights.required
        )

    def _alternatives_exclude(self, facts: _Facts, other: Any) -> bool:
        return any(
            all(self.is_shown(alternative, other) for alternative in part[keyword])
            for part in facts.conjuncts
            for keyword in ("anyOf", "oneOf")
            if keyword in part
        )


def _property(part: JsonDict, name: str) -> Any:
    """The schema of a property, which is true if it may be any."""
    others = True if "patternProperties" in part else part.get("additionalProperties", True)
    return part.get("properties", {}).get(name, others)


def _types(part: JsonDict) -> set[str]:
    """The types of values that match; a number without a fraction is an integer, and no other number."""
    values = _values(part)
    if values is not None:
        return set(map(_type_of, values))
    names = part.get("type", TYPES)
    types = {names} if isinstance(names, str) else set(names)
    if "number" in types:
        types.add("integer")
    return types


def _type_of(value: Any) -> str:
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return TYPE_NAMES[type(value)]


def _values(part: JsonDict) -> Sequence[Any] | None:
    """The only values that may match; None if they are not listed."""
    if "const" in part:
        return [part["const"]]
    values: Sequence[Any] | None = part.get("enum")
    return values


def _are_apart(low: JsonDict, high: JsonDict, types: Set[str]) -> bool:
    """Whether all values of one schema are smaller than those of another one."""
    return any(types <= of and low.get(largest, inf) < high.get(smallest, -inf) for largest, smallest, of in RANGES)
