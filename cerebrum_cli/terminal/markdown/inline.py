"""Inline Markdown of one line: what becomes styling, links and mathematics; every other character stays.

Markup begins and ends at the edges of words only, so that `5*6*7`, `*args` and `__init__` are text. What looks like
a link in code, most backslashes, and HTML are text, too, but for entities in prose, keys, superscripts and subscripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.emphasis import tokenize as read_emphasis
from markdown_it.rules_inline.strikethrough import tokenize as read_strikethrough
from markdown_it.token import Token
from rich.text import Text

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.text import Match, Pattern
from cerebrum_cli.terminal.markdown.mathematics import (
    IDEOGRAPHIC,
    INLINE_MATH,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    formula,
    is_mathematics,
)

Rule = Callable[[StateInline, bool], bool]

# Beside markup: a space, punctuation, a letter of a script that formulas do not use, and any sign that is not ASCII.
_BEFORE = re.compile(rf"[\s(\[{{\"':,;!?>|{IDEOGRAPHIC}\u0590-\u1cff-]?|[^\w\0-\x7f]")
_AFTER = re.compile(rf"[\s)\]}}\"':,;.!?<|{IDEOGRAPHIC}\u0590-\u1cff-]?|[^\w\0-\x7f]")
_MARKS, _SIGNS = "*_~", "/=+&"
_BOLD_PART = re.compile(r"(?:[^\W\d_]|[:.!?])[^\W\d_]")  # "**N**orth", "**Note:**text"
# Of emphasized text: also a formula, or a bold file name.
_FIRST = re.compile(r"[*_~]*+[^\s,;:.!?)\]}/\\*~=]|\\(?=[(\[])|(?<=\*\*)\.(?=\w)")
_LAST = re.compile(r"[^\s(\[{/\\=<]")
_IDENTIFIER = re.compile(  # or a line of a drawing
    r"_(?![^\W\d_]{3,}_(?!\w))\w+_(?!\w)|__\w+__(?!\w)|(?<!\S)_+(?=[|/.:;,=<>)-]|\\(?![(\[]))"
)
_SYLLABLE = re.compile(r"(?<=[^\W\d_]\*\*)[^\W\d_]{2,}\*\*[^\W\d_]")  # "un**believ**able"
_FACTOR = re.compile(r"[\d)=]\s*\*(?=\(*(?:\d|\w\b))")  # a product, with a space on one side
_LINK = re.compile(  # not handlers[name](self.event)
    r"(?<![a-zA-Z0-9_])!?\[(?P<label>(?:[^\[\]\\`]|`[^`]*`|\[[^\[\]]*\])*)\]"
    r"\((?P<address>(?:https?://|mailto:|#)(?:[^\s()<>]|\([^\s()]*\))+|[\w-]*[./][\w./#-]*\w|(?P=label))"
    r"(?P<title>\s+\"[^\"]*\")?\)"
)
_HOST = re.compile(r"://|\w\.\w\w")  # in a text that may stand for another address than it seems
# Terminals with hyperlinks: those that set a variable, and values of TERM_PROGRAM and TERM.
_LINK_VARIABLES = ("VTE_VERSION", "WT_SESSION", "KITTY_WINDOW_ID")
_LINK_TERMINALS = ("iTerm.app", "vscode", "WezTerm", "ghostty", "alacritty", "foot", "xterm-kitty", "xterm-ghostty")
_TAG = re.compile(r"<(kbd|sub|sup)>([^<>]{1,40})</\1>")
SCRIPTS = {"sub": SUBSCRIPTS, "sup": SUPERSCRIPTS}
_ESCAPE = re.compile(
    r"(?:\\_)+(?=[^\W_])|(?<=[^\W_])(?:\\_)+"  # snake\_case
    r"|(?:(?<![^\s\w(])|(?<=\\\*))\\[*#](?=[\w\s*,;:!?)]|\\\*|\.?(?:\s|\Z))"  # 5 \* 3, C\#
    r"|(?<=\d)\\\.(?=\s)|(?<![^\s(~-])\\\$(?=\d[\d,.]*+(?![\w\"'}=]))"  # 1\. and \$5
    r"|\\\[(?:\d{1,3}|[^\W\d_]+(?: [^\W\d_]+)+)\\\]"  # \[1\]
    r"|(?<=[^\W_]|[.,;:!?)*\"])\\\Z"  # a line that ends here
    r"|&(?:#x?[\da-fA-F]{1,6}|[a-zA-Z]\w{1,30});"
)
_HTML = re.compile(r"\s*<(?!(?:kbd|sub|sup)>).*>\s*")
_PATH = re.compile(r"\w:|/|\\[a-zA-Z]")
STYLES = {"strong": "bold", "em": "italic", "s": "strike"}
CODE_STYLE = "markdown.code"


def inline_text(line: str) -> Text:
    """A line with its styling, and with mathematics as Unicode."""
    text = Text()
    styles = []
    for token in PARSER.parseInline(line)[0].children or ():
        name = token.type.removesuffix("_open").removesuffix("_close")
        if token.nesting > 0:
            styles.append(STYLES[name])
        elif token.nesting < 0:
            styles.pop()
        else:
            part = token_text(token)
            for style in styles:
                part.stylize(style)
            text.append_text(part)
    return text


def token_text(token: Token) -> Text:
    match token.type:
        case "code_inline":
            return Text(token.content, CODE_STYLE)
        case "math":
            return Text(formula(token.content))
        case "tag" if token.tag == "kbd":
            return Text(token.content, "bold")
        case "tag":
            return Text(token.content.translate(SCRIPTS[token.tag]))
        case "link":
            return link_text(token.meta["link"])
    return Text(token.content)


def link_text(link: Match) -> Text:
    """The text of a link, with its address behind it, unless the terminal has hyperlinks.

    A text that is an address, too, never stands for another one.
    """
    text, address = inline_text(link["label"]), link["address"]
    shown = address.removeprefix("mailto:") + (link["title"] or "")
    is_hidden = text.plain and not _HOST.search(text.plain) and ":" in address and has_hyperlinks()
    if is_hidden or text.plain == shown:
        text.stylize(f"underline link {address}")
        return text
    return text.append(f" ({shown})")


def has_hyperlinks() -> bool:
    """Whether the environment names a terminal that shows hyperlinks; no terminal can be asked."""
    if environment("TMUX") or environment("STY"):  # which may drop them
        return False
    names = environment("TERM_PROGRAM"), environment("TERM")
    return any(map(environment, _LINK_VARIABLES)) or any(name in _LINK_TERMINALS for name in names)


def _at_word_edges(rule: Rule) -> Rule:
    """A rule for delimiters that open and close only at the edges of words."""

    def read(state: StateInline, silent: bool) -> bool:
        start = state.pos
        identifier = _IDENTIFIER.match(state.src, start)
        if identifier:
            state.pending += identifier[0]
            state.pos = identifier.end()
            return True
        count = len(state.delimiters)
        if not rule(state, silent):
            return False
        opens, closes = _edges(state.src, start, state.pos)
        for delimiter in state.delimiters[count:]:
            delimiter.open = opens
            delimiter.close = closes
        return True

    return read


def _edges(line: str, start: int, end: int) -> tuple[bool, bool]:
    """Whether markup at a place of a line begins there, and whether it ends there."""
    before = line[:start].rstrip(_MARKS)[-1:]
    after = line[end:].removesuffix("\\").lstrip(_MARKS)[:1]
    if before and before == after and not before.isalnum():  # "*", -*- and the like
        return False, False
    opens = _BEFORE.fullmatch(before) is not None
    closes = _AFTER.fullmatch(after) is not None
    if line[start:end] == "**":  # bold also between signs, and to the middle of a word
        opens = opens or before in _SIGNS or _SYLLABLE.match(line, end) is not None
        closes = closes or after in _SIGNS or _BOLD_PART.fullmatch(before + after) is not None
    opens = opens and _FIRST.match(line, end) is not None and not _is_factor(line, start)
    return opens, closes and _LAST.fullmatch(line[:start][-1:]) is not None


def _is_factor(line: str, at: int) -> bool:
    start = len(line[:at].rstrip()) - 1
    return bool(_FACTOR.match(line, max(start, 0)))


def _at_pattern(pattern: Pattern, read: Callable[[StateInline, Match], bool]) -> Rule:
    """A rule for text that a pattern matches, unless `read` returns that it is text as it is."""

    def rule(state: StateInline, _: bool) -> bool:
        found = pattern.match(state.src, state.pos)
        if found is None or not read(state, found):
            return False
        state.pos = found.end()
        return True

    return rule


def _read_math(state: StateInline, found: Match) -> bool:
    if is_mathematics(found[0]):
        state.push("math", "", 0).content = found[0]
        return True
    return False


def _read_text(state: StateInline, found: Match) -> bool:
    """Read a backslash or an entity of prose: not those of HTML or a path, nor what cannot be printed."""
    *_, word = state.src[: state.pos].split(" ")
    text = unescape(found[0].replace("\\", "")).replace("\xa0", " ")
    is_shown = text.isprintable() and (text or found[0] == "\\")
    if not is_shown or _PATH.search(word) or _HTML.fullmatch(state.src):
        return False
    state.pending += text
    return True


def _read_tag(state: StateInline, found: Match) -> bool:
    name, content = found.groups()
    if name in SCRIPTS and not all(ord(character) in SCRIPTS[name] for character in content):
        return False
    state.push("tag", name, 0).content = content
    return True


def _read_link(state: StateInline, found: Match) -> bool:
    state.push("link", "", 0).meta["link"] = found
    return True


PARSER = MarkdownIt("zero").enable(["backticks", "emphasis", "strikethrough"])
PARSER.inline.ruler.at("emphasis", _at_word_edges(read_emphasis))
PARSER.inline.ruler.at("strikethrough", _at_word_edges(read_strikethrough))
PARSER.inline.ruler.push("math", _at_pattern(INLINE_MATH, _read_math))
PARSER.inline.ruler.push("escape", _at_pattern(_ESCAPE, _read_text))
PARSER.inline.ruler.push("tag", _at_pattern(_TAG, _read_tag))
PARSER.inline.ruler.push("hyperlink", _at_pattern(_LINK, _read_link))
