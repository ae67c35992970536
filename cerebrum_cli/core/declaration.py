"""Options: declared once, as dataclass fields with flags, help, range and heading, and converted from any source.

An option without a heading has no flag: it is a setting that only `--set`, a variable or config.toml changes. Values
come from files, variables, requests and the command line.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, dataclass_transform, get_args

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import freeze
from cerebrum_cli.core.text import Texts, enumeration, well_formed

LORA = "lora"  # key of the adapters among recorded settings
NONE = "none"  # instead of a file: no adapter, whatever a layer below sets
EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")  # of reasoning, that templates may take
LARGEST = sys.float_info.max
SWITCH_WORDS = {
    **dict.fromkeys(("true", "on", "yes", "1", "t", "y"), True),
    **dict.fromkeys(("false", "off", "no", "0", "f", "n"), False),
}
SWITCHES = ("on", "off")

Heading = Literal["Model", "Sampling", "Input", "Output"]
HEADINGS: tuple[Heading, ...] = get_args(Heading)

T = TypeVar("T")


class InvalidValue(ValueError):
    """A value that cannot be converted, or an item of it, and what was expected: "a whole number of 1 or more"."""

    def __init__(self, value: Any, expected: str) -> None:
        self.value = value
        self.expected = expected


class ValueType(NamedTuple):
    """How the values of an option are read from text, and converted to its type, whatever they come from.

    `convert` raises InvalidValue.
    """

    convert: Callable[[Option, Any], Any]
    read: Callable[[Any], Any] = str  # a number may stay text, which is refused when it is converted
    is_list: bool = False
    is_switch: bool = False


class Option(NamedTuple):
    """Properties of an option other than its default, which is that of its field.

    Numbers lie between `least` and `most`, inclusive. Text is one of `choices` where there are any. A `local` option
    concerns a model on this machine, and has no meaning for one on a server. `values` completes a value in a shell, for
    the app of a command. `name` is that of its field. Help leaves out the flag `alias`.
    """

    help: str
    heading: Heading | None
    kind: ValueType
    short: str | None = None
    metavar: str | None = None
    least: float = -inf
    most: float = inf
    choices: Texts = ()
    local: bool = False
    values: Callable[[Any], Iterable[str]] | None = None
    name: str = ""
    alias: str | None = None

    @property
    def words(self) -> Texts:
        """What its value may be, as far as that can be listed."""
        return SWITCHES if self.kind.is_switch else self.choices

    @property
    def argument(self) -> str:
        """How the command line names it: "--max-tokens", or "--set flash_attn" for one without a flag."""
        return flag(self.name) if self.heading else f"--set {self.name}"

    @property
    def expected(self) -> str:
        try:
            self.convert(object())
        except InvalidValue as invalid:
            return invalid.expected
        raise AssertionError(self.name)

    def convert(self, value: Any) -> Any:
        """Convert a value to its type. Raises InvalidValue."""
        return self.kind.convert(self, value)

    def validate(self, value: Any, source: str | None = None) -> Any:
        """Convert a value to its type. Raises UsageError, which names the source of the value, or else the option."""
        try:
            return self.kind.convert(self, value)
        except InvalidValue as invalid:
            raise UsageError.invalid(source or self.argument, invalid.value, invalid.expected) from invalid

    def parse(self, texts: Sequence[str], source: str | None = None, has_quotes: bool = True) -> Any:
        """Read its value from text, the last one unless it is a list. Raises UsageError as `validate` does.

        An item of a list is one text; if it `has_quotes`, it may be several in quotes, as in a shell.
        """
        if not self.kind.is_list:
            value = texts[-1]
            with suppress(ValueError):  # what is no number is refused when it is converted
                value = self.kind.read(value)
            return self.validate(value, source)
        if has_quotes:
            texts = [item for text in texts for item in split_quoted(text)]
        return self.validate(list(texts), source)


def option(
    help: str, heading: Heading | None = None, kind: ValueType | None = None, default: Any = None, **details: Any
) -> Any:
    """Declare a dataclass field as an option, of text by default; `details` are further fields of `Option`."""
    return field(default=default, metadata={"option": Option(help, heading, kind or TEXT, **details)})


def switch(help: str, heading: Heading | None = None, **details: Any) -> Any:
    """Declare a field as an option that is off unless it is set."""
    return option(help, heading, SWITCH, default=False, **details)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def option_group(group: type[T]) -> type[T]:
    """A frozen dataclass of options, without representation and comparison, which take milliseconds of every start."""
    return freeze(dataclass(init=False, kw_only=True, repr=False, eq=False)(group))  # type: ignore[no-any-return]


def options_of(group: type) -> dict[str, Option]:
    """The options of a dataclass, by name, without those named in `without`."""
    options = {}
    hidden = getattr(group, "without", ())
    for member in fields(group):
        if "option" in member.metadata and member.name not in hidden:
            options[member.name] = member.metadata["option"]._replace(name=member.name)
    return options


def split_quoted(text: str) -> list[str]:
    """Words in quotes, as a shell reads them; any other text is one word."""
    if text.startswith(("'", '"')):
        with suppress(ValueError):
            return shlex.split(text)
    return [text]


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
    least, most = max(declared.least, -LARGEST), min(declared.most, LARGEST)
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
        number: int | float = declared.kind.read(value)
        if declared.kind is NUMBER or number == value:  # some programs write integers as 5.0
            return number
    raise InvalidValue(value, expected_number(declared))


def expected_number(declared: Option) -> str:
    kind = "a number" if declared.kind is NUMBER else "a whole number"
    if declared.least == -inf:
        return kind
    if declared.most == inf:
        return f"{kind} of {declared.least:g} or more"
    return f"{kind} from {declared.least:g} to {declared.most:.10g}"


def to_text(declared: Option, value: Any) -> str:
    choices = declared.choices
    if not isinstance(value, str) or (choices and value not in choices):
        raise InvalidValue(value, enumeration(choices, "or") or "text")
    if value != well_formed(value):
        raise InvalidValue(value, "UTF-8 text")
    return value


def to_name(_: Option, value: Any) -> str:
    """Convert a name that may be that of a file, which can have any bytes."""
    if isinstance(value, str):
        return value
    raise InvalidValue(value, "text")


def to_texts(_: Option, value: Any) -> Texts:
    items = value if isinstance(value, list | tuple) else [value]
    for item in items:
        if not isinstance(item, str) or not item:
            raise InvalidValue(item, "non-empty text")
    return tuple(items)


def to_path(_: Option, value: Any) -> Path:
    if not value:  # which Path takes for the working directory
        raise InvalidValue(value, "a path")
    return Path(value)


def to_sources(declared: Option, value: Any) -> tuple[Path | str, ...]:
    """Convert what a prompt is made of: paths, and web addresses, which stay text."""
    return tuple(item if is_address(item) else to_path(declared, item) for item in value)


def is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def to_adapters(declared: Option, value: Any) -> Texts:
    """Convert adapters; `none` alone stands for no adapter."""
    texts = to_texts(declared, value)
    if texts == (NONE,):
        return ()
    for text in texts:
        try:
            parse_adapter(text)
        except ValueError as error:
            expected = "FILE or FILE:SCALE, with a finite number as the scale, or only none"
            raise InvalidValue(text, expected) from error
    return texts


def parse_adapter(text: str) -> tuple[str, float]:
    """Read FILE or FILE:SCALE. Raises ValueError for a scale that is not finite, and for a missing name, or none."""
    name, colon, number = text.rpartition(":")
    path, scale = text, 1.0
    if colon:
        with suppress(ValueError):  # for a colon in the name
            path, scale = name, float(number)
    if path in ("", NONE) or not isfinite(scale):
        raise ValueError(text)
    return path, scale


def to_thinking(declared: Option, value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value).removesuffix(".0")
    if text.isdecimal():
        tokens = int(text)
        return str(tokens) if tokens else "off"
    if text not in declared.choices:
        raise InvalidValue(value, f"`on`, `off`, a whole number of tokens, or an effort ({', '.join(EFFORTS)})")
    return text


def to_layers(declared: Option, value: Any) -> str:
    text = str(value)
    if not (text in declared.choices or text.isdecimal()):
        raise InvalidValue(value, f"a number of layers, `{'` or `'.join(declared.choices)}`")
    return text


def to_cache_types(declared: Option, value: Any) -> str:
    types = str(value).split(":")
    if len(types) > 2 or not {*types} <= {*declared.choices}:
        raise InvalidValue(value, f"{enumeration(declared.choices, 'or')}, or two of them, as in q8_0:q4_0")
    return ":".join(dict.fromkeys(types))


SWITCH = ValueType(to_bool, is_switch=True)
INTEGER = ValueType(to_number, int)
NUMBER = ValueType(to_number, float)
TEXT = ValueType(to_text)
NAME = ValueType(to_name)
TEXTS = ValueType(to_texts, is_list=True)
PATH = ValueType(to_path)
SOURCES = ValueType(to_sources, is_list=True)
LAYERS = ValueType(to_layers)
CACHE = ValueType(to_cache_types)
ADAPTERS = ValueType(to_adapters, is_list=True)
THINKING = ValueType(to_thinking)
