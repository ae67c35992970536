"""Read Markdown line by line, as plain lines, code, tables, and display mathematics.

Each line is read for good once it is complete, but for those of a table and of display mathematics.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from cerebrum_cli.terminal.markdown.mathematics import INLINE_MATH, is_mathematics

LIST_MARKER = r"(?:[-*+]|\d{1,9}[.)])\s+"
PREFIX = rf"[\s>]*(?:{LIST_MARKER})?"  # of a line of a quote or an item
FENCE = re.compile(rf"(?P<prefix>{PREFIX})(?P<marks>`{{3,}}|~{{3,}})(?P<info>[^`]*)")
SEPARATOR = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")
# How display mathematics begins and ends.
DELIMITERS = {r"\[": r"\]", "$$": "$$"}
DELIMITERS |= {rf"\begin{{{name}}}": rf"\end{{{name}}}" for name in ("align", "align*", "equation", "equation*")}
# At the beginning of a line, or at the end of a text.
DISPLAY_BEGIN = re.compile(
    rf"(?P<before>{PREFIX}|.*\S\s+(?=(?:\$\$|\\\[)\s*\Z))(?P<begin>{'|'.join(map(re.escape, DELIMITERS))})"
)
CODE_SPAN = re.compile(r"(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)")
COMMENT = re.compile(r" {0,3}#\s+[^\s|].*")  # or a heading
# A line of code that has no fence: Python, YAML, a crontab, a shell and the like.
CODE_LINE = re.compile(
    r"""(?ax)(?!.*[\w)][.!?]\s*\Z)\s*(?:  # no sentence
    [@}\])] | \#[^\s#] | \$\ [a-z] | \[[\w.:-]+\]\s*\Z | \*?\.\w | (?:\d+\.){3}\d+\s
    | ["']?[a-z_][\w.-]*["']?:(?:\s|\Z)
    | [\w.\[\]"'$-]+\s*(?:[-+*/|:]?=|<-) | [\w.]+\(
    | from\s\S+\simport\s | (?:import|def|class|return|export|const|let|var|FROM|RUN|COPY|CMD|ENV|WORKDIR)\s
    | (?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP)\s | for\s\w+\sin\s\S*[\d:(.]
    | (?:if|elif|else|for|while|with|try|except|async)\b(?!.*\b(?:each|of|the|we|you)\b).*(?::|;\s*(?:then|do))\s*\Z
    | (?:[\d*][\d*,/-]*\s+){3}[\w*,/-]+\s+[\w*,/-]+\s+\S
    | (?:Get|Set|New|Add|Remove|Import|Install|Start|Stop)-[A-Z]
    | [a-z][\w.-]*\s(?:[ -~]*\s)?(?:--?[a-z]|["'/$~.]|[|&>]+\s)
    )"""
)
# A key of a list, or a command; not a sentence.
BESIDE_CODE = re.compile(
    r"(?a)-\s[a-z_][\w.-]*:.*|(?!.*\b(?:a|an|and|are|in|is|it|of|the|to)\b)[a-z][\w./-]*(?:\s[ -~]*)?(?<![.!?,])"
)
HUNK = "@@ -"
DIFF_LINE = re.compile(r"[-+ \\@]|\Z|diff |index ")
STRING_QUOTES = re.compile("\"{3}|'{3}")
MAX_DISPLAY_LINES = 40
MAX_INDENT = 3  # of the end of a code block; marks further to the right are those of a docstring
CODE_LINES, ABOVE, BELOW = 8, 32, 8  # of a piece of code, and those that are highlighted with it


Alignment = Literal["left", "center", "right"]
Lines = tuple[str, ...]


class TextLine(NamedTuple):
    text: str
    is_code: bool = False  # without a fence; it has no markup


class MarkdownTable(NamedTuple):
    """A table by cells: what precedes each row, its alignments, and its rows, of which the first is the header."""

    prefix: str
    alignments: tuple[Alignment, ...]
    rows: tuple[Lines, ...]


class Display(NamedTuple):
    """Mathematics on lines of its own, with what precedes it, its delimiters, and the punctuation behind it."""

    prefix: str
    text: str
    after: str


class Fence(NamedTuple):
    """The beginning of a code block: what precedes it in its line, its number, and what it names."""

    prefix: str
    marks: str
    info: str
    number: int

    @property
    def language(self) -> str:
        return re.split(r"[\s:{]", self.info.strip(), maxsplit=1)[0]


class Code(NamedTuple):
    """Some lines of a code block, with those `above` and `below` on which their highlighting may depend."""

    fence: Fence
    lines: Lines
    above: Lines
    below: Lines


class CodeEnd(NamedTuple):
    """The end of a code block."""


Block = TextLine | MarkdownTable | Display | Fence | Code | CodeEnd
Blocks = list[Block]


class Reader:
    """Reads lines, and holds back those of a block that is not complete: code, a table or mathematics.

    A heading is held, too, up to the next line with text: below it may be code, of which it is a comment. Directly
    below code it is a comment at once. A copy can read further lines without a change of the original.
    """

    def __init__(self) -> None:
        self._held: Lines = ()
        self._fence: Fence | None = None
        self._fences = 0
        self._above: Lines = ()  # the code that is held
        self._is_in_code = False  # without a fence
        self._is_below_blank = False
        self._opening = ""  # of a diff, or of a string of several lines in code without a fence

    def read(self, line: str) -> Blocks:
        """Read a complete line; return what is complete now."""
        blocks = self._read_block(line)
        if self._fence:
            self._is_in_code = False
        elif not is_comment(line):
            self._is_in_code = is_code(line, self._is_in_code)
        self._is_below_blank = not line.strip()
        return blocks

    def _read_block(self, line: str) -> Blocks:
        if self._fence:
            return self._read_code(self._fence, line)
        if not self._held:
            return self._read_first(line)
        if DISPLAY_BEGIN.match(self._held[0]):
            return self._read_display(line)
        if is_comment(self._held[0]):
            return self._read_below_comment(line)
        return self._read_table(line)

    def finish(self) -> Blocks:
        """What is held, when the text ends."""
        if self._fence or len(self._held) < 2 or DISPLAY_BEGIN.match(self._held[0]) or is_comment(self._held[0]):
            return self.unfinished()
        held, self._held = self._held, ()
        return [table(held)]

    def unfinished(self) -> Blocks:
        """What is held, as it looks for now; it is not held any longer."""
        if self._fence:
            return self._take_code(self._fence, is_over=True)
        held, self._held = self._held, ()
        return [TextLine(line, self._is_in_code and is_comment(line)) for line in held]

    def skip_code(self) -> None:
        """Hold the lines of a code block for the highlighting of further ones only."""
        if self._fence:
            self._take_code(self._fence, is_over=True)

    def _read_first(self, line: str) -> Blocks:
        """Read a line while no block is open."""
        if self._is_verbatim(line):
            return [TextLine(line, is_code=True)]
        if found := FENCE.fullmatch(line):
            self._fences += 1
            self._fence = Fence(found["prefix"], found["marks"], found["info"], self._fences)
            return [self._fence]
        if DISPLAY_BEGIN.match(line):
            return self._read_display(line)
        if is_comment(line) and self._is_in_code and not self._is_below_blank:
            return [TextLine(line, is_code=True)]
        if is_comment(line) or "|" in line:
            self._held = (line,)
            return []
        return [TextLine(line)]

    def _is_verbatim(self, line: str) -> bool:
        if self._opening == HUNK and DIFF_LINE.match(line):
            return True
        if self._opening not in ("", HUNK) and not FENCE.match(line):
            if self._opening in line:
                self._opening = ""
            return True
        self._opening = HUNK if line.startswith(HUNK) else ""
        if not is_code(line, self._is_in_code):
            return bool(self._opening)
        quotes = STRING_QUOTES.findall(line)
        if len(quotes) % 2:
            self._opening = quotes[-1]
        return bool(quotes) or line.rstrip().endswith((";", "{"))

    def _read_code(self, fence: Fence, line: str) -> Blocks:
        mark = fence.marks[0]
        marks = line.expandtabs().lstrip(" >")
        indent = len(line.expandtabs()) - len(marks) - len(fence.prefix)
        if indent <= MAX_INDENT and len(marks.rstrip()) >= len(fence.marks) and not marks.rstrip().strip(mark):
            rest = self._take_code(fence, is_over=True)
            self._fence = None
            self._above = ()
            return [*rest, CodeEnd()]
        self._held += (without(fence.prefix, line),)
        return self._take_code(fence)

    def _take_code(self, fence: Fence, is_over: bool = False) -> Blocks:
        """The code that has enough lines below it, or all if the block is over."""
        pieces: Blocks = []
        while len(self._held) >= CODE_LINES + BELOW or (is_over and self._held):
            lines, self._held = self._held[:CODE_LINES], self._held[CODE_LINES:]
            pieces.append(Code(fence, lines, self._above, self._held[:BELOW]))
            self._above = (*self._above, *lines)[-ABOVE:]
        return pieces

    def _read_display(self, line: str) -> Blocks:
        self._held += (line,)
        first, *others = self._held
        opening = DISPLAY_BEGIN.match(first)
        assert opening
        before, begin = opening.groups()
        prefix = before.expandtabs() if re.fullmatch(PREFIX, before) else ""
        end = DELIMITERS[begin]
        lines = (first[opening.end() :], *(without(prefix, other) for other in others))
        content, found, after = "\n".join(lines).partition(end)
        source = f"{begin}{content}{end}"
        if found and is_mathematics(source) and not after.strip(" .,;:"):
            self._held = ()
            display = Display(prefix, source, after.strip())
            return [display] if prefix or not before else [TextLine(before), display]
        if found or not line.strip("> \t") or FENCE.fullmatch(line) or len(self._held) == MAX_DISPLAY_LINES:
            *before, last = self.unfinished()
            return [*before, *self._read_first(line)] if before else [last]
        return []

    def _read_below_comment(self, line: str) -> Blocks:
        if not line.strip("- \t"):  # nothing, or the beginning of a YAML document
            self._held += (line,)
            return []
        is_adjacent = len(self._held) == 1
        self._is_in_code = is_code(line, is_adjacent or self._is_in_code) or (is_adjacent and is_comment(line))
        return self.unfinished() + self._read_first(line)

    def _read_table(self, line: str) -> Blocks:
        is_row = "|" in line
        if len(self._held) == 1:
            _, (header, separator) = split_prefix((*self._held, line))
            is_row = bool(SEPARATOR.fullmatch(separator)) and len(cells(separator)) == len(cells(header))
        if is_row:
            self._held += (line,)
            return []
        return self.finish() + self._read_first(line)


def is_comment(line: str) -> bool:
    """Whether a line may be a comment; it may be a heading, too."""
    return COMMENT.fullmatch(line) is not None


def is_code(line: str, is_beside_code: bool) -> bool:
    """Whether a line without a fence looks like code, or like its continuation `beside` code."""
    if CODE_LINE.match(line):
        return True
    continues = not line.strip() or line[:4].isspace() or BESIDE_CODE.fullmatch(line.strip())
    return is_beside_code and bool(continues)


def without(prefix: str, line: str) -> str:
    """A line without the indentation, and the marks of a quote, that its block has."""
    marks = ">" if ">" in prefix else ""
    return re.sub(rf"\A[\s{marks}]{{0,{len(prefix)}}}", "", line)


def split_prefix(lines: Lines) -> tuple[str, Lines]:
    """What precedes the first of these lines, and all lines without it."""
    prefix = lines[0][: -len(lines[0].lstrip("> \t"))]
    return prefix.expandtabs(), tuple(without(prefix, line) for line in lines)


def cells(line: str) -> list[str]:
    """The cells of a row; a pipe in code, or after a backslash, is text."""
    line = CODE_SPAN.sub(lambda code: re.sub(r"\\?\|", "\0", code[0]), line.strip())
    line = INLINE_MATH.sub(lambda found: found[0].replace("|", "\0") if is_mathematics(found[0]) else found[0], line)
    line = re.sub(r"\A\||(?<!\\)\|\Z", "", line)
    return [cell.strip().replace("\\|", "|").replace("\0", "|") for cell in re.split(r"(?<!\\)\|", line)]


def table(lines: Lines) -> MarkdownTable:
    prefix, lines = split_prefix(lines)
    header, separator, *others = map(cells, lines)
    rows = []
    for row in (header, *others):
        last = len(header) - 1
        row += [""] * (last - len(row) + 1)
        rows.append((*row[:last], " | ".join(row[last:])))
    return MarkdownTable(prefix, tuple(map(alignment, separator)), tuple(rows))


def alignment(cell: str) -> Alignment:
    if not cell.endswith(":"):
        return "left"
    return "center" if cell.startswith(":") else "right"


class CodeBlock(NamedTuple):
    """The text of a code block, and the language its fence names; empty if none."""

    text: str
    language: str


def read_blocks(text: str) -> Blocks:
    """The blocks of a complete text."""
    reader = Reader()
    blocks = [block for line in text.replace("\r", "").split("\n") for block in reader.read(line)]
    return blocks + reader.finish()


def code_blocks(text: str) -> list[CodeBlock]:
    lines: dict[Fence, list[str]] = {}
    for block in read_blocks(text):
        if isinstance(block, Fence):
            lines[block] = []
        elif isinstance(block, Code):
            lines[block.fence] += block.lines
    return [CodeBlock("\n".join(texts).rstrip("\n"), fence.language) for fence, texts in lines.items()]


def is_same_language(*languages: str) -> bool:
    """Whether all names are those of one language: `py` and `python3` are."""
    from rich.syntax import Syntax

    lexers = [Syntax("", language).lexer for language in languages]
    names = [lexer.name for lexer in lexers if lexer]
    if len(names) < len(languages):
        names = [language.lower() for language in languages]
    return len(set(names)) == 1
