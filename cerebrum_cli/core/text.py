"""Text functions that several packages use: sizes, times, well-formed text, partial markers, shell commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

# Complete sequences first (CSI; OSC, DCS, SOS, PM and APC to their terminator), two-byte escapes, single controls, and
# bidirectional overrides, embeddings and isolates, with which text can be shown in another order than it is stored.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-Z\\^-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
_UNFINISHED = re.compile(
    r"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*\x1b?|\x1b[ -/]*)\Z"
)
MAX_HELD = 4096  # characters held back for an incomplete sequence; a longer one is shown as text without its controls


def strip_controls(text: str) -> str:
    """Remove escape sequences, control characters other than tab and newline, and bidirectional controls."""
    return _SEQUENCE.sub("", text)


def strip_complete(text: str) -> tuple[str, str]:
    """A text without its controls, and apart from it an incomplete sequence at its end, to go before the next text."""
    unfinished = _UNFINISHED.search(text)
    if unfinished and len(unfinished[0]) <= MAX_HELD:
        return strip_controls(text[: unfinished.start()]), unfinished[0]
    return strip_controls(text), ""


MAX_FOREIGN = 200  # characters of a text of another program
YEAR_1, YEAR_9999 = -62_135_596_800, 253_402_300_799  # the first and the last second
MAX_NAME = 200  # characters of a name in a message
MAX_MESSAGE = 5000  # characters of a message
MAX_COMPARED = 1000  # names with which a misspelled one is compared: each takes up to a millisecond

Texts = tuple[str, ...]
Match = re.Match[str]
Pattern = re.Pattern[str]

_LONG_NAME = re.compile(rf"'[^']{{{MAX_NAME - 1},}}'|\"[^\"]{{{MAX_NAME - 1},}}\"|\S{{{MAX_NAME + 1},}}")


def partial_marker_length(text: str, markers: Iterable[str]) -> int:
    """Length of the longest end of `text` that may be the start of one of `markers`."""
    longest = 0
    for marker in markers:
        for length in range(longest + 1, len(marker)):
            if text.endswith(marker[:length]):
                longest = length
    return longest


def format_size(size: int) -> str:
    """Format a number of bytes in units of 1000, as the Hub does."""
    for unit, name, digits in ((1e9, "GB", 2), (1e6, "MB", 0)):
        if size >= unit:
            return f"{size / unit:,.{digits}f} {name}"
    return f"{size / 1e3:,.0f} kB"


def format_count(count: int, noun: str, plural: str | None = None) -> str:
    if count == 1:
        return f"{count} {noun}"
    return f"{count} {plural or f'{noun}s'}"


def format_names(names: Sequence[str], most: int = 3) -> str:
    """Format names as a list, shortened to `most`: "a, b, c, and 2 more"."""
    shown = ", ".join(names[:most])
    if len(names) > most:
        return f"{shown}, and {len(names) - most} more"
    return shown


def enumeration(clauses: Sequence[str], word: str = "and") -> str:
    """Clauses with commas, and with a word before the last; empty without any."""
    return f" {word} ".join(filter(None, [", ".join(clauses[:-1]), *clauses[-1:]]))


def did_you_mean(name: str, known: Sequence[str], count: int = 1, cutoff: float = 0.6) -> str:
    """Beginning of a hint with the known names most like a given one: "did you mean a or b? "; empty without any.

    Names that begin with it come first.
    """
    from difflib import get_close_matches

    known = known[:MAX_COMPARED]
    longer = [each for each in known if len(name) > 1 and each.startswith(name)]
    near = [*longer, *get_close_matches(name[:MAX_FOREIGN], set(known) - {*longer}, count, cutoff)][:count]
    if near:
        return f"did you mean {' or '.join(near)}? "
    return ""


def format_utc(seconds: float) -> str:
    """A time since 1970, such as that of a file, in the years 1 to 9999: those beyond have the first or last second."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(min(max(seconds, YEAR_1), YEAR_9999), UTC).isoformat(timespec="seconds")


def truncate(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return f"{text[: length - 1]}…"


def cut_middle(text: str, limit: int) -> str:
    """The beginning and the end of a text that is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    start = limit // 2
    end = len(text) - (limit - start)
    return f"{text[:start]}\n[... {end - start:,} characters omitted ...]\n{text[end:]}"


def short_name(name: object) -> str:
    """The name of a file, a model or a session for a message: the beginning and the end of a long one."""
    text = str(name)
    if len(text) <= MAX_NAME:
        return text
    return f"{text[: MAX_NAME // 2]}…{text[1 - MAX_NAME // 2 :]}"


def with_short_names(text: str) -> str:
    """A message in which every word or quoted text is short, since it may be a name."""
    return truncate(_LONG_NAME.sub(lambda match: short_name(match[0]), text), MAX_MESSAGE)


def one_line(text: str) -> str:
    return " ".join(text.split())


def describe_error(error: BaseException) -> str:
    """An error of foreign code in a line, whatever its class makes of that."""
    try:
        return one_line(f"{type(error).__name__}: {error}").removesuffix(":")
    except Exception:
        return type(error).__name__


def well_formed(text: str) -> str:
    """Replace lone surrogates, which come from arguments that are not UTF-8 and from truncated JSON, with U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def foreign_line(text: str) -> str:
    """A text of another program as a well-formed line, truncated to fit into a message."""
    return well_formed(one_line(text))[:MAX_FOREIGN]


def text_digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal digits."""
    from hashlib import sha256

    return sha256(text.encode()).hexdigest()


def short_digest(data: bytes) -> str:
    """First 128 bits of a SHA-256 digest, in hexadecimal digits."""
    from hashlib import sha256

    return sha256(data).hexdigest()[:32]


def format_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}"


def pip_install(arguments: str) -> str:
    """Shell command that installs into this environment: a plain `pip` may be that of another one, or missing."""
    from shlex import quote

    return f"{quote(sys.executable)} -m pip install {arguments}"


def code_block(text: str, language: str = "") -> str:
    """Text as a code block of Markdown, with a fence that is longer than any run of backticks in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def braced(text: str) -> str:
    """Text between the brace that opens `text` and the matching one; empty if there is none."""
    depth = 0
    for mark in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if not depth and mark[0] == "}":
            return text[1 : mark.start()]
    return ""


def name_from_stem(stem: str) -> str:
    """The name of a file, in the characters that a model's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")
