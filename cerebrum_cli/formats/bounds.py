"""Bounds on what a chat template may make and how long it may run: a template is a program of unknown origin.

Python's operators and methods make values of any size in one step that no signal interrupts, so sizes are known before
a value is made. Containers are immutable in the sandbox, so one that was small when made stays small, as text too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from sys import getsizeof
from typing import Any

from jinja2 import Undefined

MAX_SECONDS = 5.0
MAX_BYTES = 32_000_000  # of a value, eight times the text of a million tokens
MAX_TOTAL_BYTES = 1_000_000_000  # of all values together; more, if the memory in use does not grow
MAX_DEPTH = 100  # of containers
MAX_BITS = 100_000  # of an integer
MAX_ARGUMENT = 100  # characters
MAX_DIGITS = 300  # of a rounded number
MAX_INDENT = 8
ITEM_BYTES = 72  # of an item in a container, and of a short string
FIELD_WIDTH = 9999
VIEWS = (KeysView, ValuesView, ItemsView)  # of a dictionary
PLAIN_TYPES = (str, int, float, bool, type(None), list, tuple, dict, Undefined)


class LimitError(Exception):
    """A template has reached a limit; the message continues "the chat template"."""


class Meter:
    """The time and memory that one rendering has left."""

    def __init__(self) -> None:
        self._left = MAX_TOTAL_BYTES
        self._resident: int | None = None
        self._deadline = time.monotonic() + MAX_SECONDS

    def tick(self) -> None:
        """Raise LimitError if the time is up."""
        if time.monotonic() > self._deadline:
            raise LimitError(f"takes longer than {MAX_SECONDS:.0f} s")

    def require(self, size: int) -> None:
        """Raise LimitError for a value that would have so many bytes."""
        if size > MAX_BYTES:
            raise LimitError(f"makes a value of more than {MAX_BYTES // 1_000_000} MB")

    def require_left(self, size: int) -> None:
        """Raise LimitError if memory does not last for temporary values of so many bytes."""
        if size <= self._left:
            return
        resident = _resident_bytes()
        if self._resident is None:
            self._resident = resident  # at most MAX_TOTAL_BYTES are alive
        if size > MAX_BYTES or resident > self._resident + MAX_TOTAL_BYTES // 2:
            raise LimitError("uses too much memory")
        self._left = size + MAX_TOTAL_BYTES // 4  # values made so far have been freed

    def made(self, value: Any) -> Any:
        """Count a value that was made from values within the limits, without repetitions."""
        if isinstance(value, (str, bytes)):
            size = getsizeof(value)
            self.require(size)
            self._left -= size
        elif isinstance(value, (list, tuple, dict)):
            self._left -= ITEM_BYTES * len(value)
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise LimitError("makes an integer that is too large")
        self.require_left(0)
        return value

    def nested(self, value: Any) -> Any:
        """Count a container whose items may be any values, also the same one several times."""
        self.require(self.weigh(value))
        return self.made(value)

    def weigh(self, *values: Any) -> int:
        """Approximate bytes of values with all they contain, counted as often as it occurs in their text."""
        total, level = 0, list(values)
        for _ in range(MAX_DEPTH):
            inner: list[Any] = []
            for value in level:
                if isinstance(value, (str, bytes)):
                    total += getsizeof(value)
                elif isinstance(value, dict):
                    total += 2 * ITEM_BYTES * len(value)
                    inner += value.keys()
                    inner += value.values()
                elif isinstance(value, (list, tuple, *VIEWS)):
                    total += ITEM_BYTES * len(value)
                    inner += value
                if total > MAX_BYTES:
                    return total
            if not inner:
                return total
            level = inner
        raise LimitError("nests values too deeply")


METER: ContextVar[Meter] = ContextVar("METER")
"""The meter of the rendering on this thread."""


def join(values: Iterable[Any]) -> str:
    """Join the texts of values within the limits."""
    meter, texts = METER.get(), [value if isinstance(value, str) else str(value) for value in values]
    meter.require(sum(map(len, texts)))
    return str(meter.made("".join(texts)))


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Raise LimitError for an operation with too large a result."""
    meter = METER.get()
    if operator == "*":
        for value, count in ((left, right), (right, left)):
            if isinstance(count, int) and isinstance(value, TEXTS):
                meter.require((getsizeof(value) - getsizeof(value[:0])) * count)
            elif isinstance(count, int) and isinstance(value, (list, tuple)):
                meter.require(meter.weigh(value) * count)
    elif operator == "%" and isinstance(left, TEXTS):
        meter.require(_percent_size(left, right if isinstance(right, tuple) else (right,)))
    elif operator == "+" and isinstance(left, (list, tuple)):
        meter.require(meter.weigh(left, right))
    if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_BITS:
            raise LimitError("makes an integer that is too large")


def check_call(name: str, value: Any, arguments: Sequence[Any]) -> None:
    """Raise LimitError for a filter of a value, or a method, that takes too long or has too large a result.

    `arguments` are in the order of its signature.
    """
    if name in SIZES:
        METER.get().require(SIZES[name](value, arguments))
    elif name in TEMPORARY_SIZES:
        METER.get().require_left(TEMPORARY_SIZES[name](value, arguments))
    elif name in UNBOUNDED and UNBOUNDED[name](arguments):
        raise LimitError(f"calls {name} with a value that is not supported")


def check_format(text: str, values: Sequence[Any]) -> None:
    """Raise LimitError for `str.format` with too large a result."""
    if re.search(r"\{[^{}]*\{(?!\{)", text):
        raise LimitError("uses a variable width")
    METER.get().require(_format_size(text, text.count("{"), values))


def _percent_size(text: Any, values: Sequence[Any]) -> int:
    text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
    if "*" in text:
        raise LimitError("uses a variable width")
    return _format_size(text, text.count("%"), values)


def _format_size(text: str, fields: int, values: Sequence[Any]) -> int:
    if re.search(r"\d{5}", text) or not all(isinstance(value, PLAIN_TYPES) for value in values):
        raise LimitError("formats a value in an unsupported way")
    return len(text) + fields * (FIELD_WIDTH + max(map(METER.get().weigh, values), default=0))


def _integers(arguments: Sequence[Any], default: int = 0) -> int:
    """Magnitude of the largest integer among arguments, such as a width."""
    return max((abs(each) for each in arguments if isinstance(each, int)), default=default)


def _texts(arguments: Sequence[Any]) -> list[Any]:
    return [each for each in arguments if isinstance(each, TEXTS)]


def _filled_size(_: Any, arguments: Sequence[Any]) -> int:
    return (ITEM_BYTES + METER.get().weigh(*arguments)) * _integers(arguments)


def _indented_size(value: Any, arguments: Sequence[Any]) -> int:
    width = max([_integers(arguments, 4), *map(len, _texts(arguments))])
    return len(value) + width * (1 + len(value.splitlines())) if isinstance(value, str) else 0


def _joined_size(value: Any, arguments: Sequence[Any]) -> int:
    """Size of `", ".join(items)`, or of `items|join(", ")`."""
    weigh = METER.get().weigh
    items, separators = (arguments[:1], [value]) if isinstance(value, TEXTS) and arguments else ([value], arguments)
    return sum(weigh(each) + len(each) * max(map(weigh, separators), default=0) for each in items)


def _json_size(value: Any, arguments: Sequence[Any]) -> int:
    size = METER.get().weigh(value)
    width = max([_integers(arguments), *map(len, _texts(arguments))])
    return size if width <= MAX_INDENT else size // ITEM_BYTES * MAX_DEPTH * width


def _pieces_size(value: Any, arguments: Sequence[Any]) -> int:
    separator = next(filter(None, _texts(arguments)), None)
    return ITEM_BYTES * int(value.count(separator) if separator else len(value)) + len(value)


def _replaced_size(value: Any, arguments: Sequence[Any]) -> int:
    value = value if isinstance(value, bytes) else str(value)
    texts = _texts(arguments)
    if len(texts) < 2 or len(texts[1]) <= len(texts[0]):
        return len(value)
    old, new = texts[:2]
    return len(value) + int(value.count(old)) * (len(new) - len(old))


def _tabs_size(value: Any, arguments: Sequence[Any]) -> int:
    return len(value) + _integers(arguments, 8) * int(value.count("\t" if isinstance(value, str) else b"\t"))


def _translated_size(value: Any, arguments: Sequence[Any]) -> int:
    tables = [each for each in arguments if isinstance(each, dict)]
    return len(value) * max((len(text) for table in tables for text in _texts(list(table.values()))), default=1)


def _is_long(arguments: Sequence[Any]) -> bool:
    """Whether there are many characters to strip, each of which is compared with each, or a long format of a time."""
    return any(len(each) > MAX_ARGUMENT for each in _texts(arguments))


SEQUENCES = (str, bytes, list, tuple)
TEXTS = (str, bytes)
SIZES: Mapping[str, Callable[[Any, Sequence[Any]], int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "to_bytes"), lambda _, arguments: _integers(arguments)),
    **dict.fromkeys(("batch", "slice"), _filled_size),
    "expandtabs": _tabs_size,
    "format": lambda value, arguments: _percent_size(str(value), arguments),
    "indent": _indented_size,
    "join": _joined_size,
    "replace": _replaced_size,
    "tojson": _json_size,
    "translate": _translated_size,
}
TEMPORARY_SIZES: Mapping[str, Callable[[Any, Sequence[Any]], int]] = {
    **dict.fromkeys(("split", "rsplit", "splitlines"), _pieces_size),
    "encode": lambda value, _: 100 * len(value),  # `namereplace` writes names
}
UNBOUNDED: Mapping[str, Callable[[Sequence[Any]], bool]] = {
    **dict.fromkeys(("strip", "lstrip", "rstrip", "trim", "strftime"), _is_long),
    "fromkeys": bool,
    "round": lambda arguments: _integers(arguments) > MAX_DIGITS,
    "sum": lambda arguments: any(isinstance(each, (list, tuple)) for each in arguments),
}
CHECKED = frozenset((*SIZES, *TEMPORARY_SIZES, *UNBOUNDED))


def _resident_bytes() -> int:
    """Memory of this process, without mapped files where the system reports them."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))
