"""What an answer has to match: a JSON Schema in any of its forms, a grammar, or a regular expression."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.files import expand_user
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import Texts

GrammarKind = Literal["schema", "gbnf", "lark", "regex"]

TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_FIELD = re.compile(r"""([^\s:,"{}[\]]+)(?:\s+(list)\[(\w+)\]|\s+(\w+))?\s*(?::\s*(.*))?""")
FIELDS_HINT = f'fields are "NAME [TYPE][: DESCRIPTION]", separated by commas; types: {", ".join(TYPES)}, list[TYPE]'


@frozen
class Grammar:
    """A grammar of some kind, as its author wrote it."""

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():  # to llama.cpp and to servers this means no constraint
            raise GrammarError("the grammar is empty", "write a rule named root, or omit it")

    @property
    def is_schema(self) -> bool:
        return self.kind == "schema"

    @property
    def value(self) -> Any:
        """What servers take: the schema as an object, or the text of another grammar."""
        return json.loads(self.text) if self.is_schema else self.text

    @property
    def fields(self) -> Texts:
        """The names of the fields that the schema of an object lists; none of another grammar."""
        properties = self.value.get("properties") if self.is_schema else None
        return tuple(properties) if isinstance(properties, dict) else ()


def schema_grammar(schema: Any) -> Grammar:
    """The grammar of a JSON Schema: a mapping, a pydantic model, JSON, or fields as in "name, age int, tags list[str]".

    Raises GrammarError if it is none of these.
    """
    if isinstance(schema, str) and not is_json_schema(schema):
        if schema_file(schema):
            raise unusable(f"{schema!r} is neither a JSON object nor fields", FIELDS_HINT)
        schema = schema_of_fields(schema)
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        elif hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if schema is True:  # which any value matches, as it does {}
            schema = {}
        if schema is False:
            raise ValueError("no answer matches the schema false")
        if not isinstance(schema, Mapping):
            raise ValueError("it is not a JSON object")
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()  # lone surrogates cannot be
        return Grammar("schema", text)
    except RecursionError as error:
        raise unusable("it is nested too deeply", "flatten it") from error
    except (ValueError, TypeError) as error:
        raise unusable(str(error), "it must be a JSON Schema object") from error


def unusable(reason: str, hint: str) -> GrammarError:
    return GrammarError(f"cannot use the schema: {reason}", hint)


def is_json_schema(text: str) -> bool:
    return text.lstrip("\ufeff \t\r\n").startswith("{") or text.strip() in ("true", "false")


def schema_file(schema: str, folder: Path = Path()) -> Path | None:
    """The file with a schema that a text names; None if the text is a schema or fields itself."""
    path = folder / expand_user(schema)
    names_file = path.suffix == ".json" or not re.search(r"[\s,]", schema.strip())
    if not is_json_schema(schema) and (names_file or os.path.isfile(path)):  # noqa: PTH113  # whatever its length
        return path
    return None


def schema_of_fields(fields: str) -> JsonDict:
    """The schema of an object with these fields, all of them required."""
    separator = "\n" if "\n" in fields.strip() else ","
    properties = {}
    for written in fields.split(separator):
        text = written.strip().removesuffix(",")
        if not text:
            continue
        match = _FIELD.fullmatch(text)
        if match is None:
            raise unusable(f"invalid field {text!r}", FIELDS_HINT)
        name, is_list, item_type, single_type, description = match.groups()
        type_name = item_type or single_type or "str"
        if type_name not in TYPES:
            raise unusable(f"unknown type {type_name!r} of field {name!r}", FIELDS_HINT)
        value: JsonDict = {"type": TYPES[type_name]}
        if is_list:
            value = {"type": "array", "items": value}
        if description:
            value["description"] = description
        if name in properties:
            raise unusable(f"the field {name!r} occurs twice", "rename one of them")
        properties[name] = value
    if not properties:
        raise unusable("it has no fields", FIELDS_HINT)
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
