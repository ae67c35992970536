"""Passages of a reply: its lines and sentences; a passage without the markup around it, and as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from unicodedata import normalize

LONGEST = 500  # characters of a passage that is read for an answer
_FENCE = re.compile(r"\s*(?:```|~~~)")
_SENTENCE_END = re.compile(
    r"(?<=[.!?。！？])(?<!\b[A-Z]\.)(?<!\b(?:Dr|Mr|Ms|St|vs)\.)(?<!\bMrs\.)[*_\"'”’)\]]*(?:\s+(?=[^\sa-z=])|(?<=[。！？]))"
)
_IN_PAIR = re.compile(r"(?s)(\*\*|[*_`\"']|\$\$?|\\\(|\\\[|[“‘„«「])((?:(?!\1).)+)(?:\1|\\\)|\\\]|[”’“»」])")
_EDGE = re.compile(r"\A[\s,;:。；、：✅✓✔☑💯🎉←↵]+|(?:[\s,:。；、：！✅✓✔☑💯🎉←↵]|(?<!\.)(?<!\.[A-Z])\.|(?<!\d)!)+\Z")
_ARGUMENT = r"\s*\{([^{}]*)\}"
# LaTeX and HTML as plain text, in order; those that nest are repeated.
_REWRITING = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"<<[^<>]*>>|</?[A-Za-z]{1,8}\s?/?>", ""),  # GSM8K's calculations, tags
        (r"\\(?:left|right|displaystyle|quad|qquad|[Bb]igg?[lr]?|[,;:!])(?![A-Za-z])|\\(?=\s)|~", ""),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r"(\1)/(\2)"),
        *(
            (rf"\\[dtc]?frac{_ARGUMENT}{_ARGUMENT}", r"(\1)/(\2)"),
            (rf"\\(?:text|mathrm|mbox|operatorname|boxed|fbox|text[bi][ft]|math[a-z]{{2}}){_ARGUMENT}", r"\1"),
            (rf"\\sqrt(?:{_ARGUMENT}|\s*(\w))|\bsqrt\(([^()]*)\)", r"√(\1\2\3)"),
        )
        * 2,
        (r"([\^_])\{([^{}]*)\}", r"\1(\2)"),
        (r"\^\s*\(?(?:\\circ|∘|°)\)?|\\degree", "°"),
        (r"\\[()\[\]]|\\?\$", ""),
        (r"\\(?=[A-Za-z%{}#&_\\])", ""),
        (r"(?<=[\^_√/])\s*\((-?\d+|\w)\)|\((-?\d+|\w)\)(?=/)", r"\1\2"),
    )
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_NAMES = """times=× cdot=× div=÷ pi=π infty=∞ cup=∪ cap=∩ le=≤ leq=≤ ge=≥ geq=≥ pm=± neq=≠ approx=≈ in=∈"""
_SYMBOLS = dict(pair.split("=") for pair in _NAMES.split())
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")


def lines(text: str) -> list[str]:
    """Lines that are neither blank nor fences of code."""
    return [line.strip() for line in text.splitlines() if line.strip() and not _FENCE.match(line)]


def sentences(line: str) -> list[str]:
    """Sentences of a line, of each the end that is read."""
    return [sentence[-LONGEST:] for sentence in _SENTENCE_END.split(line)]


def last_sentences(content: list[str]) -> Iterator[str]:
    """Sentences of the last lines as plain text, the last one first, of each line the end."""
    for line in reversed(content[-12:]):
        yield from reversed(sentences(plain(line[-4 * LONGEST :])))


def unwrapped(passage: str) -> str:
    """A passage without markup, quotes and punctuation around it, unless it has nothing else."""
    bare = _EDGE.sub("", passage)
    while pair := _IN_PAIR.fullmatch(bare):
        bare = _EDGE.sub("", pair[2])
    return bare or passage.strip()


def plain(passage: str) -> str:
    """A passage as plain text, with symbols in place of LaTeX's commands: 1/2π of `\\frac{1}{2}\\pi`."""
    if re.search(r"[\\{$<√]|sqrt", passage):
        passage = _COMMAND.sub(lambda command: _SYMBOLS.get(command[1], command[0]), passage)
        for pattern, new in _REWRITING:
            passage = pattern.sub(new, passage)
    passage = _RAISED.sub(lambda digits: f"^{normalize('NFKC', digits[0])}", passage)
    passage = _LOWERED.sub(lambda digits: f"_{normalize('NFKC', digits[0])}", passage)
    passage = normalize("NFKC", passage).replace("⁄", "/").replace("−", "-").replace("–", "-")
    return " ".join(re.sub(r"\*\*|`", "", passage).split())
