"""Read a row from a JSON object: a prompt or OpenAI messages with settings, or an OpenAI batch request.

Unknown keys are ignored; without a template, for which they may be fields, a notice names them. Keys that ask for
something unsupported are errors. A key that the template uses as a field has no other meaning. In a row without
settings, this goes for all keys but those of the conversation, and with a template for these, too.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cerebrum_cli.core.conversation import Conversation, conversation_from_messages
from cerebrum_cli.core.declaration import InvalidValue
from cerebrum_cli.core.errors import GrammarError, UsageError
from cerebrum_cli.core.grammar import Grammar, schema_grammar
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_fields import ID_KEYS, InvalidRow, RowId, Template, own_id, parse_line
from cerebrum_cli.core.settings import GENERATION_KEYS, OPTIONS, SourcedLayer
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.rows.row import InputRow, RowOf, invalid_row, require_prompt

# Names of settings, OpenAI's among them; later ones win.
_SETTINGS = {
    "reasoning_effort": "think",
    **{key: key for key in GENERATION_KEYS},
    "max_completion_tokens": "max_tokens",
}
_UNSUPPORTED = (
    "tools",
    "functions",
    "lora",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "structured_outputs",
)
NO_OBJECT = 'a row must be an object like {"prompt": "..."}'
_KNOWN = {
    *ID_KEYS,
    *_SETTINGS,
    *_UNSUPPORTED,
    "response_format",
    "prompt",
    "messages",
    "body",
    "method",
    "url",
    "system",
    "n",
    "user",
    "metadata",
    "store",
    "stream",
}


def read_json_row(
    number: int, line: str, template: Template | None, has_settings: bool = True, row_of: RowOf | None = None
) -> InputRow:
    """The row of a line, or with its error."""
    id: RowId = number
    prompt = None
    input: Any = line
    try:
        input = parse_line(line)
        item = _object(input, line)
        id = own_id(item, number)
        if row_of:
            return replace(row_of(number, id, item), input=item)
        request = _request(item)
        fields = template.fields if template else ()
        rest = {}
        if has_settings:
            rest = {key: value for key, value in request.items() if key not in fields}
        rendered = template.render(request) if template else None
        meanings = rest if has_settings or template else request
        conversation = _conversation(meanings, rendered)
        prompt = conversation.question
        unused = () if template else tuple(filter(rest.get, rest.keys() - _KNOWN))
        values = _settings(rest), None, input, unused, _grammar(rest)
        return InputRow(number, id, prompt, conversation, *values)
    except InvalidRow as invalid:
        return invalid_row(number, invalid.id or id, prompt, invalid, input)
    except RecursionError:
        return invalid_row(number, id, prompt, InvalidRow("nested too deeply", "invalid_json"), line)


def _object(item: Any, line: str) -> JsonDict:
    if "\\u" in line:  # which may be half of a surrogate pair
        item = json.loads(well_formed(json.dumps(item, ensure_ascii=False)))
    if not isinstance(item, dict):
        raise InvalidRow(NO_OBJECT)
    return item


def _request(item: JsonDict) -> JsonDict:
    """The request: the object itself, or an OpenAI batch request merged with its body."""
    body = item.get("body")
    if not isinstance(body, dict) or "prompt" in item or "messages" in item:
        return item
    return item | body


def _conversation(request: JsonObject, rendered: str | None) -> Conversation:
    prompt, messages, system = (request.get(key) for key in ("prompt", "messages", "system"))
    if system is not None and not isinstance(system, str):
        raise InvalidRow(f"invalid `system`: {system!r}; it must be text")
    if rendered is not None:
        prompt, messages = rendered, None
    if messages is not None:
        if prompt is not None:
            raise InvalidRow("`prompt` and `messages` cannot be used together: omit one")
        try:
            conversation = conversation_from_messages(messages, "the row")
        except UsageError as error:
            raise InvalidRow(f"{error.message}; {error.hint}", "invalid_messages") from error
        if system is None:
            return conversation
        if conversation.system_prompt is not None:
            raise InvalidRow("`system` and a system message cannot be used together: omit one")
        return replace(conversation, system_prompt=system)
    if prompt is None:
        keys = ", ".join(request) or "none"
        raise InvalidRow(f"neither `prompt` nor `messages` is given; the fields are: {keys}", "no_prompt")
    if not isinstance(prompt, str):
        raise InvalidRow(f"invalid `prompt`: {prompt!r}; it must be text")
    return Conversation(system_prompt=system).user(require_prompt(prompt))


def _settings(request: JsonObject) -> SourcedLayer:
    _reject_unsupported(request)
    settings = SourcedLayer()
    for key, name in _SETTINGS.items():
        if (value := request.get(key)) is None:
            continue
        if key == "reasoning_effort" and value == "none":
            value = "off"
        try:
            settings.put(name, OPTIONS[name].convert(value), f"row's {key}")
        except InvalidValue as invalid:
            problem = f"invalid `{key}`: {invalid.value!r}; it must be {invalid.expected}"
            raise InvalidRow(problem, "invalid_setting") from invalid
    return settings


def _reject_unsupported(request: JsonObject) -> None:
    if (count := request.get("n")) not in (None, 1):
        raise InvalidRow(f"invalid `n`: {count!r}; use --votes to sample several answers")
    for key in _UNSUPPORTED:
        if request.get(key):
            raise InvalidRow(f"`{key}` is not supported: remove the key")


def _grammar(request: JsonObject) -> Grammar | None:
    """The grammar of an answer, by OpenAI's `response_format`."""
    form = request.get("response_format")
    if form is None:
        return None
    try:
        if form["type"] == "text":
            return None
        if form["type"] == "json_object":
            return schema_grammar({"type": "object"})
        if form["type"] == "json_schema":
            return schema_grammar(form["json_schema"]["schema"])
    except GrammarError as error:
        raise InvalidRow(f"invalid `response_format`: {error.message}") from error
    except (LookupError, TypeError):
        pass
    raise InvalidRow(f"invalid `response_format`: {form!r}; its type must be text, json_object or json_schema")
