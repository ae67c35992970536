"""Inline Markdown of one line: what becomes styling, links and mathematics; every other character stays.

Markup begins and ends at the edges of words only, so that `5*6*7`, `*args` and `__init__` are text. Backslashes, what
looks like a link in code, and HTML are text, too, but for entities in prose, keys, superscripts and subscripts.
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
from cerebrum_cli.core.text import Match
from cerebrum_cli.terminal.markdown.mathematics import (
    IDEOGRAPHIC,
    INLINE_MATH,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    formula,
    is_mathematics,
)

Rule = Callable[[StateInline, bool], bool]

_BEFORE = re.compile(rf"[\s(\[{{\"'“”‘«—–:,;!?>|…{IDEOGRAPHIC}-]?")
_AFTER = re.compile(rf"[\s)\]}}\"'“”’»—–:,;.!?<|…{IDEOGRAPHIC}-]?")
_MARKS, _SIGNS = "*_~", "/=+→&"
_BOLD_PART = re.compile(r"(?:[^\W\d_]|[:.!?])[^\W\d_]")  # "**N**orth", "**Note:**text"
_FIRST = re.compile(r"[^\s,;:.!?)\]}/\\*~=]|\\(?=[(\[])|(?<=\*\*)\.(?=\w)")  # of emphasized text, or a bold file name
_LAST = re.compile(r"[^\s(\[{/\\=<]")
_IDENTIFIER = re.compile(r"_(?![^\W\d_]{3,}_(?!\w))\w+_(?!\w)|__\w+__(?!\w)")
_SYLLABLE = re.compile(r"[^\W\d_]{2,}\*\*[^\W\d_]")  # "un**believ**able"
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
_ENTITY = re.compile(r"&(?:#x?[\da-fA-F]{1,6}|[a-zA-Z]\w{1,30});")
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
        if identifier and not silent:
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
    after = line[end:].lstrip(_MARKS)[:1]
    if before and before == after and not before.isalnum():  # "*", -*- and the like
        return False, False
    opens = _BEFORE.fullmatch(before) is not None
    closes = _AFTER.fullmatch(after) is not None
    if line[start:end] == "**":  # bold also between signs, and to the middle of a word
        opens = opens or before in _SIGNS or (before.isalpha() and _SYLLABLE.match(line, end) is not None)
        closes = closes or after in _SIGNS or _BOLD_PART.fullmatch(before + after) is not None
    opens = opens and _FIRST.match(line, end) is not None and not _is_factor(line, start)
    return opens, closes and _LAST.fullmatch(line[:start][-1:]) is not None


def _is_factor(line: str, at: int) -> bool:
    start = len(line[:at].rstrip()) - 1
    return bool(_FACTOR.match(line, max(start, 0)))


def _read_math(state: StateInline, silent: bool) -> bool:
    found = INLINE_MATH.match(state.src, state.pos)
    if found is None or not is_mathematics(found[0]):
        return False
    if not silent:
        token = state.push("math", "", 0)
        token.content = found[0]
    state.pos = found.end()
    return True


def _read_entity(state: StateInline, silent: bool) -> bool:
    """Read an entity; those in lines of HTML, and of what cannot be printed, stay text."""
    found = _ENTITY.match(state.src, state.pos)
    if found is None or "<" in state.src:
        return False
    text = unescape(found[0]).replace("\xa0", " ")
    if not text or not text.isprintable():
        return False
    if not silent:
        state.pending += text
    state.pos = found.end()
    return True


def _read_tag(state: StateInline, silent: bool) -> bool:
    found = _TAG.match(state.src, state.pos)
    if found is None:
        return False
    name, content = found.groups()
    if name in SCRIPTS and not all(ord(character) in SCRIPTS[name] for character in content):
        return False
    if not silent:
        state.push("tag", name, 0).content = content
    state.pos = found.end()
    return True


def _read_link(state: StateInline, silent: bool) -> bool:
    found = _LINK.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        token = state.push("link", "", 0)
        token.meta["link"] = found
    state.pos = found.end()
    return True


PARSER = MarkdownIt("zero").enable(["backticks", "emphasis", "strikethrough"])
PARSER.inline.ruler.at("emphasis", _at_word_edges(read_emphasis))
PARSER.inline.ruler.at("strikethrough", _at_word_edges(read_strikethrough))
PARSER.inline.ruler.push("math", _read_math)
PARSER.inline.ruler.push("entity", _read_entity)
PARSER.inline.ruler.push("tag", _read_tag)
PARSER.inline.ruler.push("hyperlink", _read_link)
