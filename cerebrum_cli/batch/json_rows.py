"""Read a row from a JSON object: a prompt or OpenAI messages with settings, or an OpenAI batch request.

Unknown keys are ignored: they may be fields for a template, or notes. Keys that ask for something unsupported are
errors. A key that the template uses as a field has no other meaning.
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import isfinite
from typing import Any

from cerebrum_cli.batch.rows import InputRow, InvalidRow, RowId, Template, invalid_row, require_prompt
from cerebrum_cli.core.conversation import Conversation, conversation_from_messages
from cerebrum_cli.core.declaration import InvalidValue
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import GENERATION_KEYS, OPTIONS
from cerebrum_cli.core.text import well_formed

ID_KEYS = ("custom_id", "id")  # the first with a value is the row's id
_ALIASES = {"max_completion_tokens": "max_tokens", "dry_sequence_breakers": "dry_sequence_breaker"}  # of other programs
_SETTINGS = {**{key: key for key in GENERATION_KEYS}, **_ALIASES}  # later ones win

_UNSUPPORTED = ("tools", "functions", "lora", "logprobs", "top_logprobs")


def read_json_row(number: int, line: str, template: Template | None) -> InputRow:
    id = prompt = None
    try:
        item = _object(line)
        id = _own_id(item)
        request = _request(item)
        fields = template.fields if template else ()
        rest = {key: value for key, value in request.items() if key not in fields}
        conversation = _conversation(rest, template.render(request) if template else None)
        prompt = conversation.messages[-1].content
        is_openai = template is None and (request is not item or "messages" in item)
        model = rest.get("model") if is_openai else None
        return InputRow(
            number, id, prompt, conversation, _settings(rest), None, model=None if model is None else str(model)
        )
    except InvalidRow as invalid:
        return invalid_row(number, id, prompt, invalid)
    except RecursionError:
        return invalid_row(number, id, prompt, InvalidRow("invalid_json", "nested too deeply"))


def parse_json(line: str) -> Any:
    """The value of a line. Raises ValueError, also for a number that is not finite, which JSON cannot have."""
    return json.loads(line, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    if isfinite(value := float(text)):
        return value
    raise ValueError(f"{text} is not a finite number")


def parse_line(line: str) -> Any:
    try:
        return parse_json(line)
    except json.JSONDecodeError as error:
        raise InvalidRow("invalid_json", f"not JSON: {error.msg} (character {error.pos + 1})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or one that is not finite
        raise InvalidRow("invalid_json", f"not JSON: {error}") from error


def _object(line: str) -> JsonDict:
    item = parse_line(line)
    if "\\u" in line:  # which may be half of a surrogate pair
        item = json.loads(well_formed(json.dumps(item, ensure_ascii=False)))
    if not isinstance(item, dict):
        raise InvalidRow("invalid_request", 'a row must be an object like {"prompt": "..."}')
    return item


def _own_id(item: JsonObject) -> RowId | None:
    for key in ID_KEYS:
        value = item.get(key)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise InvalidRow("invalid_request", f"invalid `{key}`: {value!r}; it must be text or an integer")
        return value
    return None


def _request(item: JsonDict) -> JsonDict:
    """The request: the object itself, or an OpenAI batch request merged with its body."""
    body = item.get("body")
    if not isinstance(body, dict) or "prompt" in item or "messages" in item:
        return item
    return item | body


def _conversation(request: JsonObject, rendered: str | None) -> Conversation:
    prompt, messages, system = (request.get(key) for key in ("prompt", "messages", "system"))
    if system is not None and not isinstance(system, str):
        raise InvalidRow("invalid_request", f"invalid `system`: {system!r}; it must be text")
    if rendered is not None:
        return Conversation(system_prompt=system).user(require_prompt(rendered))
    if messages is not None:
        if prompt is not None:
            raise InvalidRow("invalid_request", "`prompt` and `messages` cannot be used together: omit one")
        try:
            conversation = conversation_from_messages(messages, "the row")
        except UsageError as error:
            raise InvalidRow("invalid_messages", f"{error.message}; {error.hint}") from error
        if system is None:
            return conversation
        if conversation.system_prompt is not None:
            raise InvalidRow("invalid_request", "`system` and a system message cannot be used together: omit one")
        return replace(conversation, system_prompt=system)
    if prompt is None:
        keys = ", ".join(request) or "none"
        raise InvalidRow("no_prompt", f"neither `prompt` nor `messages` is given; the fields are: {keys}")
    if not isinstance(prompt, str):
        raise InvalidRow("invalid_request", f"invalid `prompt`: {prompt!r}; it must be text")
    return Conversation(system_prompt=system).user(require_prompt(prompt))


def _settings(request: JsonObject) -> JsonDict:
    _reject_unsupported(request)
    settings = {}
    for key, name in _SETTINGS.items():
        if (value := request.get(key)) is None:
            continue
        try:
            settings[name] = OPTIONS[name].convert(value)
        except InvalidValue as invalid:
            problem = f"invalid `{key}`: {invalid.value!r}; it must be {invalid.expected}"
            raise InvalidRow("invalid_setting", problem) from invalid
        except OverflowError as error:  # an integer of hundreds of digits for a float
            raise InvalidRow("invalid_setting", f"invalid `{key}`: {value} is too large") from error
    return settings


def _reject_unsupported(request: JsonObject) -> None:
    if (count := request.get("n")) not in (None, 1):
        raise InvalidRow("invalid_request", f"invalid `n`: {count!r}; use --votes to sample several answers")
    for key in _UNSUPPORTED:
        if request.get(key):
            raise InvalidRow("invalid_request", f"`{key}` is not supported: remove the key")
    form = request.get("response_format")
    if form is not None and (not isinstance(form, dict) or form.get("type") != "text"):
        raise InvalidRow("invalid_request", "`response_format` is not supported: answers are text")
