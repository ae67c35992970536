"""Convert the value of a setting, as a file, a variable, a request or the command line states it, to its type."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf, isfinite
from pathlib import Path
from typing import Any, TypeAlias

from cerebrum_cli.core.declaration import Option
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.sampling import MAX_LOGIT, TokenBias

LORA = "lora"  # key of the adapters among recorded settings
NONE = "none"  # instead of a file: no adapter, whatever a layer below sets
EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")  # of reasoning, that templates may take
SWITCH_WORDS = {
    **dict.fromkeys(("true", "on", "yes", "1", "t", "y"), True),
    **dict.fromkeys(("false", "off", "no", "0", "f", "n"), False),
}

Converter: TypeAlias = Callable[[Option, Any], Any]
"""Converts a value of an option. Raises InvalidValue."""


class InvalidValue(ValueError):
    """A value that cannot be converted. Its text states what was expected: "a whole number of 1 or more"."""


def to_bool(_: Option, value: Any) -> bool:
    switched = SWITCH_WORDS.get(str(value).lower())
    if switched is None:
        raise InvalidValue("on or off")
    return switched


def to_int(declared: Option, value: Any) -> int:
    if not _is_number(declared, value, int):
        raise InvalidValue(f"a whole number{_bounds(declared)}")
    return int(value)


def to_float(declared: Option, value: Any) -> float:
    if not _is_number(declared, value, int | float):
        raise InvalidValue(f"a number{_bounds(declared)}")
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidValue("a smaller number") from error


def to_text(declared: Option, value: Any) -> str:
    if isinstance(value, str) and (not declared.choices or value in declared.choices):
        return value
    *first, last = declared.choices or ("text",)
    raise InvalidValue(f"{', '.join(first)} or {last}" if first else last)


def to_texts(_: Option, value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) and item for item in items):
        raise InvalidValue("non-empty text")
    return tuple(items)


def to_path(_: Option, value: Any) -> Path:
    if not value:  # which Path takes for the working directory
        raise InvalidValue("a path")
    return Path(value)


def to_paths(declared: Option, value: Any) -> tuple[Path, ...]:
    return tuple(to_path(declared, item) for item in value)


def to_adapters(declared: Option, value: Any) -> tuple[str, ...]:
    """Convert adapters; `none` alone stands for no adapter."""
    texts = to_texts(declared, value)
    if texts == (NONE,):
        return ()
    try:
        is_valid = NONE not in [parse_adapter(text)[0] for text in texts]
    except ValueError:
        is_valid = False
    if not is_valid:
        raise InvalidValue("FILE or FILE:SCALE, with a finite number as the scale, or only none")
    return texts


def parse_adapter(text: str) -> tuple[str, float]:
    """Read FILE or FILE:SCALE. Raises ValueError for a scale that is not finite, and for a missing file name."""
    name, colon, number = text.rpartition(":")
    try:
        path, scale = (name, float(number)) if colon else (text, 1.0)
    except ValueError:  # a colon in the name
        path, scale = text, 1.0
    if not path or not isfinite(scale):
        raise ValueError(text)
    return path, scale


def to_breakers(declared: Option, value: Any) -> tuple[str, ...]:
    """Convert sequence breakers with the escapes that llama.cpp's programs read in their option."""
    return tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in to_texts(declared, value))


def to_biases(_: Option, value: Any) -> tuple[TokenBias, ...]:
    """Convert logit biases: "TOKEN=BIAS", a list of such texts, or a mapping as in OpenAI's API."""
    items = [value] if isinstance(value, str) else value
    try:
        if not isinstance(items, (Mapping, list, tuple)):
            raise TypeError
        texts = (item if isinstance(item, TokenBias) else str(item).rpartition("=")[::2] for item in items)
        pairs = items.items() if isinstance(items, Mapping) else texts
        return tuple(_bias(token, number) for token, number in pairs)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidValue(f"TOKEN=BIAS, with a number from -{MAX_LOGIT} to {MAX_LOGIT}") from error


def to_thinking(declared: Option, value: Any) -> str:
    """Convert how long to think; no tokens at all is `off`."""
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    if text.isdecimal():
        return str(int(text)) if int(text) else "off"
    if text not in declared.choices:
        raise InvalidValue(f"`on`, `off`, a whole number of tokens, or an effort ({', '.join(EFFORTS)})")
    return text


def to_layers(declared: Option, value: Any) -> str:
    text = str(value)
    if not (text in declared.choices or text.isdecimal()):
        first, second = declared.choices
        raise InvalidValue(f"a number of layers, `{first}` or `{second}`")
    return text


NUMBERS: Mapping[str, Callable[[str], Any]] = {"int": int, "float": float}
TYPES: Mapping[str, Converter] = {  # others: texts
    "bool": to_bool,
    "int": to_int,
    "float": to_float,
    "str": to_text,
    "Path": to_path,
    "tuple[Path, ...]": to_paths,
}
SPECIAL: Mapping[str, Converter] = {  # by setting
    "cpu_moe": to_layers,
    "gpu_layers": to_layers,
    "lora": to_adapters,
    "dry_sequence_breaker": to_breakers,
    "logit_bias": to_biases,
    "think": to_thinking,
}


def convert(name: str, declared: Option, value: Any) -> Any:
    """Convert the value of an option to its type. Raises InvalidValue."""
    return (SPECIAL.get(name) or TYPES.get(declared.kind, to_texts))(declared, value)


def validate(name: str, declared: Option, value: Any, source: str) -> Any:
    """Convert the value of an option to its type. Raises UsageError, which names the source of the value."""
    try:
        return convert(name, declared, value)
    except InvalidValue as expected:
        wrong = _invalid_item(name, declared, value)
        raise UsageError.invalid(source, wrong, str(expected)) from expected


def parse(name: str, declared: Option, texts: Sequence[str], source: str, has_quotes: bool = True) -> Any:
    """Read the value of an option from text, the last one unless it is a list. Raises UsageError.

    An item of a list is one text; if it `has_quotes`, it may be several in quotes, as in a shell.
    """
    value: Any = list(texts) if declared.is_list else texts[-1]
    with suppress(ValueError):
        if declared.is_list and has_quotes:
            value = [item for text in texts for item in (shlex.split(text) if text[:1] in ("'", '"') else [text])]
        elif declared.kind in NUMBERS:
            value = NUMBERS[declared.kind](value)
    return validate(name, declared, value, source)


def expected_value(name: str, declared: Option) -> str:
    """Description of an option's valid values, such as "a number from 0 to 1"."""
    try:
        convert(name, declared, object())
    except InvalidValue as expected:
        return str(expected)
    raise AssertionError(name)


def _invalid_item(name: str, declared: Option, value: Any) -> Any:
    """The item of a list that is invalid by itself, or else the whole value."""
    for item in value if isinstance(value, list) else ():
        try:
            convert(name, declared, [item])
        except InvalidValue:
            return item
    return value


def _is_number(declared: Option, value: Any, kind: Any) -> bool:
    is_number = isinstance(value, kind) and not isinstance(value, bool) and value != inf
    return is_number and declared.least <= value <= declared.most


def _bounds(declared: Option) -> str:
    if declared.least == -inf:
        return ""
    if declared.most == inf:
        return f" of {declared.least:g} or more"
    return f" from {declared.least:g} to {declared.most:.10g}"


def _bias(token: Any, number: Any) -> TokenBias:
    bias = float(number)
    if token == "" or isinstance(number, bool) or not abs(bias) <= MAX_LOGIT:
        raise ValueError
    return TokenBias(int(token) if str(token).isascii() and str(token).isdigit() else token, bias)
