"""Options: declared once, as dataclass fields with flags, help, range and heading, and converted from any source.

An option without a heading has no flag: it is a setting that only `--set`, a variable or config.toml changes. Values
come from files, variables, requests and the command line.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, dataclass_transform, get_args

from cerebrum_cli.core.errors import UsageError

LORA = "lora"  # key of the adapters among recorded settings
NONE = "none"  # instead of a file: no adapter, whatever a layer below sets
EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")  # of reasoning, that templates may take
MAX_LOGIT = 10_000  # of penalties and biases: the sum of several stays finite
SWITCH_WORDS = {
    **dict.fromkeys(("true", "on", "yes", "1", "t", "y"), True),
    **dict.fromkeys(("false", "off", "no", "0", "f", "n"), False),
}
NUMBERS: Mapping[str, Callable[[str], Any]] = {"int": int, "float": float}

Heading = Literal["Model", "Sampling", "Length", "Input", "Output", "Speed", "Server"]
HEADINGS: tuple[Heading, ...] = get_args(Heading)

T = TypeVar("T")


class InvalidValue(ValueError):
    """A value that cannot be converted, or an item of it, and what was expected: "a whole number of 1 or more"."""

    def __init__(self, value: Any, expected: str) -> None:
        self.value = value
        self.expected = expected


class TokenBias(NamedTuple):
    """A number added to the logit of a token: an id, or text of one token until the vocabulary is known."""

    token: int | str
    bias: float

    def __str__(self) -> str:
        return f"{self.token}={self.bias:g}"


class Option(NamedTuple):
    """Properties of an option other than its default, which is that of its field.

    Numbers lie between `least` and `most`, inclusive. Text is one of `choices` where there are any. A `local` option
    concerns a model on this machine, and has no meaning for one on a server. The variable of a repeatable option holds
    one value; if it `splits`, it holds several, separated by spaces, or paths separated by colons. `name` and `kind`
    are the name and the type of its field, without None.
    """

    help: str
    heading: Heading | None = None
    short: str | None = None
    metavar: str | None = None
    least: float = -inf
    most: float = inf
    choices: tuple[str, ...] = ()
    local: bool = False
    splits: bool = False
    name: str = ""
    kind: str = ""

    @property
    def is_list(self) -> bool:
        return self.kind.startswith("tuple")

    @property
    def argument(self) -> str:
        """How the command line names it: "--max-tokens", or "--set overflow" for one without a flag."""
        return flag(self.name) if self.heading else f"--set {self.name}"

    def argument_for(self, value: Any) -> str:
        """How the command line sets it: "--threads 4", "--set flash_attn=on"."""
        return f"{self.argument}{' ' if self.heading else '='}{value}"

    @property
    def expected(self) -> str:
        try:
            self.convert(object())
        except InvalidValue as invalid:
            return invalid.expected
        raise AssertionError(self.name)

    def convert(self, value: Any) -> Any:
        """Convert a value to its type. Raises InvalidValue."""
        return (SPECIAL.get(self.name) or TYPES.get(self.kind, to_texts))(self, value)

    def validate(self, value: Any, source: str | None = None) -> Any:
        """Convert a value to its type. Raises UsageError, which names the source of the value, or else the option."""
        try:
            return self.convert(value)
        except InvalidValue as invalid:
            raise UsageError.invalid(source or self.argument, invalid.value, invalid.expected) from invalid

    def parse(self, texts: Sequence[str], source: str | None = None, has_quotes: bool = True) -> Any:
        """Read its value from text, the last one unless it is a list. Raises UsageError as `validate` does.

        An item of a list is one text; if it `has_quotes`, it may be several in quotes, as in a shell.
        """
        value: Any = list(texts) if self.is_list else texts[-1]
        with suppress(ValueError):
            if self.is_list and has_quotes:
                value = [item for text in texts for item in (shlex.split(text) if text[:1] in ("'", '"') else [text])]
            elif self.kind in NUMBERS:
                value = NUMBERS[self.kind](value)
        return self.validate(value, source)


def option(default: Any, help: str, heading: Heading | None = None, **details: Any) -> Any:
    """Declare a dataclass field as an option; `details` are further fields of `Option`."""
    return field(default=default, metadata={"option": Option(help, heading, **details)})


@dataclass_transform(frozen_default=True)
def option_group(group: type[T]) -> type[T]:
    """A frozen dataclass of options, without representation and comparison, which take milliseconds of every start."""
    return dataclass(frozen=True, repr=False, eq=False)(group)


def options_of(group: type) -> dict[str, Option]:
    """The options of a dataclass by name; not those that it inherits but names in `without`."""
    return {
        member.name: member.metadata["option"]._replace(name=member.name, kind=str(member.type).removesuffix(" | None"))
        for member in fields(group)
        if "option" in member.metadata and member.name not in getattr(group, "without", ())
    }


def flag(name: str) -> str:
    """Flag of an option: "--max-tokens" for `max_tokens`."""
    return "--" + name.rstrip("_").replace("_", "-")


def variable(name: str) -> str:
    """Environment variable of an option: "CEREBRUM_MAX_TOKENS" for `max_tokens`."""
    return "CEREBRUM_" + name.rstrip("_").upper()


def to_bool(_: Option, value: Any) -> bool:
    switched = SWITCH_WORDS.get(str(value).lower())
    if switched is None:
        raise InvalidValue(value, "on or off")
    return switched


def to_number(declared: Option, value: Any) -> int | float:
    is_whole, largest = declared.kind == "int", sys.float_info.max
    is_number = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
    if is_number and max(declared.least, -largest) <= value <= min(declared.most, largest):
        return int(value) if is_whole else float(value)
    bounds = "" if declared.least == -inf else f" from {declared.least:g} to {declared.most:.10g}"
    if declared.least != -inf and declared.most == inf:
        bounds = f" of {declared.least:g} or more"
    raise InvalidValue(value, f"{'a whole number' if is_whole else 'a number'}{bounds}")


def to_text(declared: Option, value: Any) -> str:
    if isinstance(value, str) and (not declared.choices or value in declared.choices):
        return value
    *first, last = declared.choices or ("text",)
    raise InvalidValue(value, f"{', '.join(first)} or {last}" if first else last)


def to_texts(_: Option, value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    for item in items if isinstance(items, (list, tuple)) else [None]:
        if not isinstance(item, str) or not item:
            raise InvalidValue(value if item is None else item, "non-empty text")
    return tuple(items)


def to_path(_: Option, value: Any) -> Path:
    if not value:  # which Path takes for the working directory
        raise InvalidValue(value, "a path")
    return Path(value)


def to_paths(declared: Option, value: Any) -> tuple[Path, ...]:
    return tuple(to_path(declared, item) for item in value)


def to_adapters(declared: Option, value: Any) -> tuple[str, ...]:
    """Convert adapters; `none` alone stands for no adapter."""
    texts = to_texts(declared, value)
    if texts == (NONE,):
        return ()
    for text in texts:
        with suppress(ValueError):
            if parse_adapter(text)[0] != NONE:
                continue
        raise InvalidValue(text, "FILE or FILE:SCALE, with a finite number as the scale, or only none")
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
    if isinstance(value, Mapping):
        items = [f"{token}={number}" for token, number in value.items()]
    biases = []
    for item in items if isinstance(items, (list, tuple)) else [None]:
        bias = item if isinstance(item, TokenBias) else _parse_bias(str(item))
        if bias is None:
            wrong = item if isinstance(value, (list, tuple)) else value
            raise InvalidValue(wrong, f"TOKEN=BIAS, with a number from -{MAX_LOGIT} to {MAX_LOGIT}")
        biases.append(bias)
    return tuple(biases)


def _parse_bias(text: str) -> TokenBias | None:
    token, _, number = text.rpartition("=")
    with suppress(ValueError):
        if token and abs(bias := float(number)) <= MAX_LOGIT:
            return TokenBias(int(token) if token.isascii() and token.isdigit() else token, bias)
    return None


def to_thinking(declared: Option, value: Any) -> str:
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    if text.isdecimal():
        return str(int(text)) if int(text) else "off"
    if text not in declared.choices:
        raise InvalidValue(value, f"`on`, `off`, a whole number of tokens, or an effort ({', '.join(EFFORTS)})")
    return text


def to_layers(declared: Option, value: Any) -> str:
    text = str(value)
    if not (text in declared.choices or text.isdecimal()):
        raise InvalidValue(value, f"a number of layers, `{'` or `'.join(declared.choices)}`")
    return text


Converter: TypeAlias = Callable[[Option, Any], Any]
"""Converts a value of an option. Raises InvalidValue."""

TYPES: Mapping[str, Converter] = {  # others: texts
    "bool": to_bool,
    "int": to_number,
    "float": to_number,
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
