"""Read a row from a JSON object: a prompt or OpenAI messages with settings, or an OpenAI batch request.

Unknown keys are ignored: they may be fields for a template, or notes. In the body of a batch request they are meant for
a server, and a notice names them. Keys that ask for something unsupported are errors. A key that the template uses as a
field has no other meaning. In a row without settings, this goes for all keys but those of the conversation, and with a
template for these, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cerebrum_cli.batch.input_row import InputRow, invalid_row, require_prompt
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.declaration import InvalidValue
from cerebrum_cli.core.errors import GrammarError, UsageError
from cerebrum_cli.core.grammar import Grammar, schema_grammar
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.core.messages import conversation_from_messages
from cerebrum_cli.core.row_fields import ID_KEYS, InvalidRow, RowId, Template, own_id, parse_line
from cerebrum_cli.core.settings import GENERATION_KEYS, OPTIONS, SourcedLayer
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.pictures.picture_files import picture_at_url, with_files

PROMPT_KEYS = ("prompt", "messages", "body")  # one of them is in a row, unless a template names others
_OBJECTS = ("chat_template_kwargs", "response_format", "structured_outputs")  # their keys count as those of the request
# Names of settings, those of other programs among them; later ones win.
_SETTINGS = {
    "reasoning_effort": "think",
    "chat_template_kwargs.reasoning_effort": "think",
    "enable_thinking": "think",
    "chat_template_kwargs.enable_thinking": "think",
    "chat_template_kwargs.thinking": "think",
    **{key: key for key in GENERATION_KEYS},
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "repetition_penalty": "repeat_penalty",
    "dry_sequence_breakers": "dry_sequence_breaker",
}
_FOREIGN_VALUES = {"think=none": "off", "top_k=-1": 0, "top_k=-1.0": 0}

_UNSUPPORTED = ("tools", "functions", "lora", "logprobs", "top_logprobs")


_VALUE_KEYWORDS = ("const", "enum")  # of schemas: their values may be or contain null


def _schema(schema: Any) -> Grammar:
    return schema_grammar(_without_nulls(schema))


def _without_nulls(part: Any) -> Any:
    """A schema without keywords that are null: tables of several schemas have those of all in each."""
    if isinstance(part, list):
        return [_without_nulls(item) for item in part]
    if not isinstance(part, dict):
        return part
    kept = {}
    for key, value in part.items():
        if value is not None or key == "const":
            kept[key] = value if key in _VALUE_KEYWORDS else _without_nulls(value)
    return kept


def _wrapped_schema(form: JsonObject) -> Grammar:
    return _schema(form["schema"])


def _regex(text: str) -> Grammar:
    return Grammar("regex", text)


def _choice(texts: Any) -> Grammar:
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
        raise TypeError(texts)
    return Grammar("gbnf", f"root ::= {' | '.join(map(to_json, texts))}")


def _text_grammar(text: str) -> Grammar:
    return Grammar("gbnf" if "::=" in text else "lark", text)


_FORMS = {"text": None, "json_object": Grammar("schema", '{"type": "object"}')}
# Readers of an answer's grammar, by the keys of OpenAI, vLLM, SGLang and llama-server; the first match wins.
_GRAMMARS: Mapping[str, Callable[[Any], Grammar | None]] = {
    "response_format.json_schema": _wrapped_schema,
    "response_format.schema": _schema,
    "json_schema": _schema,
    "guided_json": _schema,
    "structured_outputs.json": _schema,
    "guided_regex": _regex,
    "structured_outputs.regex": _regex,
    "guided_choice": _choice,
    "structured_outputs.choice": _choice,
    "guided_grammar": _text_grammar,
    "structured_outputs.grammar": _text_grammar,
    "structured_outputs.json_object": lambda is_on: _FORMS["json_object"] if is_on else None,
    "response_format.type": _FORMS.__getitem__,
    "response_format": _FORMS.__getitem__,
}
KNOWN = {
    *ID_KEYS,
    *PROMPT_KEYS,
    *_OBJECTS,
    *_SETTINGS,
    *_GRAMMARS,
    *_UNSUPPORTED,
    "model",
    "system",
    "pictures",
    "n",
    "user",
    "metadata",
    "store",
    "stream",
}


def read_json_row(number: int, line: str, template: Template | None, has_settings: bool = True) -> InputRow:
    id: RowId = number
    prompt = None
    input: Any = line
    try:
        input = parse_line(line)
        item = _object(input, line)
        id = own_id(item, number)
        request = _request(item)
        fields = template.fields if template else ()
        rest = {}
        if has_settings:
            rest = _flattened({key: value for key, value in request.items() if key not in fields})
        rendered = template.render(request) if template else None
        meanings = rest if has_settings or template else request
        conversation = _with_pictures(_conversation(meanings, rendered), meanings.get("pictures"))
        prompt = conversation.question
        is_openai = template is None and (request is not item or "messages" in item)
        unused = tuple(filter(rest.get, rest.keys() - item.keys() - KNOWN))
        model = rest.get("model") if is_openai else None
        return InputRow(number, id, prompt, conversation, _settings(rest), None, input, model, unused, _grammar(rest))
    except InvalidRow as invalid:
        return invalid_row(number, invalid.id or id, prompt, invalid, input)
    except RecursionError:
        return invalid_row(number, id, prompt, InvalidRow("nested too deeply", "invalid_json"), line)


def _object(item: Any, line: str) -> JsonDict:
    if "\\u" in line:  # which may be half of a surrogate pair
        item = json.loads(well_formed(json.dumps(item, ensure_ascii=False)))
    if not isinstance(item, dict):
        raise InvalidRow('a row must be an object like {"prompt": "..."}')
    return item


def _request(item: JsonDict) -> JsonDict:
    """The request: the object itself, or an OpenAI batch request merged with its body."""
    body = item.get("body")
    if not isinstance(body, dict) or "prompt" in item or "messages" in item:
        return item
    return item | body


def _flattened(request: JsonDict) -> JsonDict:
    for key in _OBJECTS:
        if isinstance(request.get(key), dict):
            request |= {f"{key}.{name}": value for name, value in request.pop(key).items()}
    return request


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
            conversation = conversation_from_messages(messages, "the row", read_picture=picture_at_url)
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


def _with_pictures(conversation: Conversation, names: Any) -> Conversation:
    if names is None:
        return conversation
    try:
        return with_files(conversation, names)
    except UsageError as error:
        raise InvalidRow(f"{error.message}; {error.hint}", "invalid_picture") from error


def _settings(request: JsonObject) -> SourcedLayer:
    _reject_unsupported(request)
    settings = SourcedLayer()
    for key, name in _SETTINGS.items():
        if (value := request.get(key)) is None:
            continue
        value = _FOREIGN_VALUES.get(f"{name}={value}", value)
        if value is True and name in settings:  # an effort says more than `true`
            continue
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
    for key, read in _GRAMMARS.items():
        if (value := request.get(key)) is None:
            continue
        try:
            return read(value)
        except (GrammarError, AttributeError, LookupError, TypeError) as error:
            problem = f"invalid `{key}`: {value!r}; use a JSON Schema, a regular expression or a grammar"
            raise InvalidRow(problem) from error
    return None
