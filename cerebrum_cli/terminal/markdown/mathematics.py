"""Mathematics in LaTeX as Unicode text. What is not known stays as it was written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from cerebrum_cli.core.text import Match, Pattern

DELIMITED = re.compile(
    r"(?s)\s*(?:\\[(\[]|\$\$?|(?=\\begin))(?P<latex>.*?)(?:\\[)\]]|\$\$?|(?<=\}))(?P<after>[.,;:]?)\s*"
)
# Private-use characters: around what is in a box, and in place of characters that are no markup.
BOLD, LITERAL = "\ue100\ue101", "\ue102\ue103\ue104\ue105"
TO_LITERAL, FROM_LITERAL = str.maketrans("{}^_", LITERAL), str.maketrans(LITERAL, "{}^_")
SCRIPT = re.compile(r"([\^_])(?:\{([^{}]*)\}|(\S))")
SCRIPTS = {
    "^": str.maketrans("0123456789+-=()nixyab′∘", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸᵃᵇ′°"),
    "_": str.maketrans("0123456789+-=()aeijkmnprtx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑᵢⱼₖₘₙₚᵣₜₓ"),
}
NAME_MARK = re.compile(r"[\^_](?=[^\W\d_]{2}|\d{2})")
SPACE = re.compile(r"\n|\\(?:left|right)\.|(?<!\\)~")
CHARACTER = re.compile(r"(?<!\\)[%$]")  # would begin a comment, or end the mathematics
UNKNOWN = re.compile(r"\\[a-zA-Z]+(?:\{[^{}]*\})+")  # macros with their arguments
RELATION = re.compile(r"([=×±∓≤≥≠≈≡→⟹⟺⇒∈∉⊂⊆∪∩∧∨∼·])")
NUMERATOR = re.compile(r"[\d.,]*|[^\W\d]+[′₀-₉⁰-⁹]?|\([^()]*\)|√\w")
DENOMINATOR = re.compile(r"[\d.,]*|[^\W\d](?:[′₀-₉⁰-⁹]?|[^\W\d]{2,})|d\w|\([^()]*\)|√\w")  # "ab" may be a product
# The cells of an environment, its place in a text, and a fraction or a root.
CELL, BLOCK = "\ue108", re.compile("\ue10a(\\d+)\ue10a")
UNIT = re.compile("([^\ue106]?)\ue106([^\ue106\ue107]*)\ue107(?=(.?))", re.DOTALL)
# What these may stand beside without parentheses.
BEFORE, AFTER = " \n([{\ue100\ue102=+-−±×·,<>≤≥≠≈≡∈→⟹|", " \n)]}\ue101\ue103=+-−±×·,.;:<>≤≥≠≈≡∈→⟹|"
# Macros that show their argument, and those that show nothing.
PLAIN = "text texttt textrm textit textbf mathrm mathit mathsf mathbf mathtt operatorname mbox boldsymbol bm"
INVISIBLE = "left right middle big Big bigl bigr Bigl Bigr bigg Bigg ! large Large displaystyle limits nonumber hline"
# Macros with the text they stand for, in which %s is their argument, where pylatexenc knows none, or another one.
OTHERS = """implies ⟹, iff ⟺, dots …, cdots ⋯, mid |, lvert |, rvert |, ne ≠, checkmark ✓, lt <, gt >, | ‖, % %,
land ∧, lor ∨, neg ¬, lnot ¬, triangle △, Box □, square □, blacksquare ■, degree °, gets ←, Re Re, Im Im, gcd gcd,
det det, dim dim, ker ker, deg deg, arg arg, bmod mod, { \ue102, } \ue103,
boxed \ue100%s\ue101, pmod (mod %s), tag (%s)"""
ACCENTS = """overline \u0305, bar \u0304, underline \u0332, vec \u20d7, hat \u0302, widehat \u0302, dot \u0307,
ddot \u0308, tilde \u0303"""
# Macros that are not written without their arguments.
VERBATIM = "underbrace overbrace overrightarrow overleftarrow"


def named(pairs: str) -> dict[str, str]:
    return dict(pair.strip().split(" ", 1) for pair in pairs.split(","))


ACCENT = named(ACCENTS)
MACROS = {
    **dict.fromkeys(PLAIN.split(), "%s"),
    **dict.fromkeys(INVISIBLE.split(), ""),
    **dict.fromkeys(("binom", "dbinom"), "C(%s, %s)"),
    **named(OTHERS),
}
FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
BRACKETS = {
    "cases": "{",
    "dcases": "{",
    "pmatrix": "()",
    "bmatrix": "[]",
    "Bmatrix": "{}",
    "vmatrix": "||",
    "Vmatrix": "‖‖",
}
LINES = (
    *("matrix", "smallmatrix", "array", "aligned", "align", "flalign", "eqnarray", "equation"),
    *("gather", "gathered", "split", "multline"),
)
ENVIRONMENTS = (*BRACKETS, *LINES, *(f"{name}*" for name in LINES))


def formula(source: str, is_display: bool = False) -> Text:
    """Mathematics with its delimiters, as Unicode by rows; as it is, if it is no valid LaTeX."""
    found = DELIMITED.fullmatch(source)
    text = to_unicode(found["latex"], is_display) if found else None
    if found is None or text is None:
        return Text(source)
    pieces = re.split(f"[{BOLD}]", text + found["after"])
    return Text.assemble(*zip(pieces, ["", "bold"] * len(pieces), strict=False))


class EnvironmentRows(NamedTuple):
    """The rows of an environment, and the brackets around them or around each."""

    rows: list[str]
    brackets: str = ""

    def displayed(self) -> list[str]:
        return [f"{self.brackets[:1]}{row}{self.brackets[1:]}" for row in self.rows]

    def inline(self) -> str:
        rows = self.rows if len(self.rows) == 1 else [" ".join(row.split()) for row in self.rows]
        return f"{self.brackets[:1]}{'; '.join(rows)}{self.brackets[1:]}"


def to_unicode(latex: str, is_display: bool) -> str | None:
    """LaTeX as Unicode; None if it is not valid. The rows of its environments stand in lines if it is displayed."""
    from pylatexenc.latex2text import LatexNodes2Text
    from pylatexenc.latexwalker import LatexWalker, LatexWalkerError

    writer = LatexNodes2Text(
        writing_context(),
        keep_braced_groups=True,
        keep_braced_groups_minlen=0,
        keep_comments=True,
        strict_latex_spaces={"between-macro-and-chars": False, "between-latex-constructs": True},
    )
    writer.blocks = []
    try:
        source = CHARACTER.sub(r"\\\g<0>", SPACE.sub(" ", latex))
        nodes, _, _ = LatexWalker(source, parsing_context(), tolerant_parsing=False).get_latex_nodes()
        text = UNKNOWN.sub(lambda unknown: unknown[0].translate(TO_LITERAL), writer.nodelist_to_text(nodes))
    except (LatexWalkerError, RecursionError, ValueError):
        return None
    lines = []
    for row in text.strip().split("\n"):
        pieces = BLOCK.split(spaced(row))
        blocks = [writer.blocks[int(piece)] if at % 2 else EnvironmentRows([piece]) for at, piece in enumerate(pieces)]
        if is_display:
            lines += beside([block.displayed() for block in blocks])
        else:
            lines.append("".join(block.inline() for block in blocks))
    return "\n".join(map(str.rstrip, lines)).translate(FROM_LITERAL)


def spaced(text: str) -> str:
    """A line with its scripts, and with spaces around its operators."""
    text = re.sub("[{}]", "", built_up(text))
    return " ".join(RELATION.sub(r" \1 ", text).split())


def beside(blocks: Sequence[Sequence[str]]) -> list[str]:
    """Blocks of rows beside one another, each in the middle of the highest."""
    height = max(map(len, blocks))
    lines = [""] * height
    for block in blocks:
        width = max(map(cell_len, block))
        top = (height - len(block)) // 2
        rows = [*[""] * top, *block, *[""] * height][:height]
        lines = [line + set_cell_size(row, width) for line, row in zip(lines, rows, strict=True)]
    return lines


@cache
def parsing_context() -> Any:
    """What pylatexenc parses: its own macros, and ours above them."""
    from pylatexenc.latexwalker import get_default_latex_context_db
    from pylatexenc.macrospec import std_macro

    macros = [std_macro(name, False, text.count("%s")) for name, text in MACROS.items() if "%s" in text]
    macros += [std_macro(name, False, 2) for name in FRACTIONS]
    macros += [std_macro(name, False, 1) for name in ACCENT]
    context = get_default_latex_context_db().filter_context(exclude_categories=["nonascii-specials"])
    context.add_context_category("here", macros, prepend=True)
    return context


@cache
def known_macros() -> frozenset[str]:
    """Names of the macros that are shown as Unicode, and of those that stay with their arguments."""
    from pylatexenc.latex2text import get_default_latex_context_db

    names = {macro.macroname for macro in get_default_latex_context_db().iter_macro_specs()}
    return frozenset({*names, *MACROS, *FRACTIONS, *ACCENT, *VERBATIM.split(), "begin", "end"})


@cache
def writing_context() -> Any:
    """How pylatexenc writes that."""
    from pylatexenc.latex2text import (
        EnvironmentTextSpec,
        MacroTextSpec,
        SpecialsTextSpec,
        get_default_latex_context_db,
    )

    macros = [MacroTextSpec(name, text or None, discard=not text) for name, text in MACROS.items()]
    macros += [MacroTextSpec(name, plain) for name in PLAIN.split()]
    macros += [MacroTextSpec(name, fraction) for name in FRACTIONS]
    macros += [MacroTextSpec(name, accented) for name in ACCENT]
    macros += [MacroTextSpec(name, verbatim) for name in VERBATIM.split()]
    macros.append(MacroTextSpec("sqrt", root))
    environments = [EnvironmentTextSpec(name, rows) for name in ENVIRONMENTS]
    context = get_default_latex_context_db().filter_context(exclude_categories=["nonascii-specials"])
    context.add_context_category("here", macros, environments, [SpecialsTextSpec("&", CELL)], prepend=True)
    context.set_unknown_macro_spec(MacroTextSpec("", verbatim))
    context.set_unknown_environment_spec(EnvironmentTextSpec("", refuse))
    return context


def plain(node: Any, l2tobj: Any) -> str:
    """A macro's argument; a name with "_" before a word, as in names of files, has no subscripts."""
    text: str = l2tobj.node_arg_to_text(node, 0)
    if NAME_MARK.search(text):
        text = text.translate({ord(mark): TO_LITERAL[ord(mark)] for mark in "_^"})
    return text


def verbatim(node: Any) -> str:
    return str(node.latex_verbatim().translate(TO_LITERAL))


def refuse(node: Any) -> str:
    raise ValueError(f"unknown environment: {node.environmentname}")


def accented(node: Any, l2tobj: Any) -> str:
    """Letters with their accent; anything else as it was written, which no accent of Unicode spans."""
    text = l2tobj.node_arg_to_text(node, 0)
    if not text.isalnum():
        return verbatim(node)
    return "".join(letter + ACCENT[node.macroname] for letter in text)


def fraction(node: Any, l2tobj: Any) -> str:
    over, under = (l2tobj.node_arg_to_text(node, place) for place in (0, 1))
    return f"\ue106{factor(over, NUMERATOR)}/{factor(under, DENOMINATOR)}\ue107"


def root(node: Any, l2tobj: Any) -> str:
    degree, radicand = (l2tobj.node_arg_to_text(node, place) for place in (0, 1))
    return f"\ue106{degree.translate(SCRIPTS['^'])}√{factor(radicand, DENOMINATOR)}\ue107"


def factor(text: str, atom: Pattern) -> str:
    """A part of a fraction, in parentheses unless it is a number, a word or a bracket."""
    text = built_up(text)
    return text if atom.fullmatch(text) else f"({text})"


def built_up(text: str) -> str:
    """A text with its fractions and roots, and then with its superscripts and subscripts, from the innermost ones."""
    return replaced(SCRIPT, script, replaced(UNIT, unit, text))


def unit(found: Match) -> str:
    """A fraction or a root, in parentheses where it stands beside another factor."""
    before, inside, after = found.groups()
    neighbor = before or found.string[: found.start()][-1:]
    if before.isdigit() and re.fullmatch(r"\d+/\d+", inside):  # a mixed number
        return f"{before} {inside}"
    is_root = "√" in inside[:2]
    is_closed = is_root and inside.endswith(")") and after not in "^_"
    if (neighbor not in BEFORE and not is_root) or (after not in AFTER and not is_closed):
        inside = f"({inside})"
    return before + inside


def rows(node: Any, l2tobj: Any) -> str:
    """The place of an environment, whose rows are aligned: of a matrix, each in brackets."""
    brackets = BRACKETS.get(node.environmentname, "")
    text = BLOCK.sub(lambda inner: l2tobj.blocks[int(inner[1])].inline(), l2tobj.nodelist_to_text(node.nodelist))
    lines = [line.split(CELL) for line in text.split("\n") if line.strip()]
    first, *others = zip_longest(*([spaced(cell) for cell in line] for line in lines or [[""]]), fillvalue="")
    columns = [first, *([f" {cell}" for cell in column] for column in others)]
    l2tobj.blocks.append(EnvironmentRows(beside(columns), brackets))
    return f"\ue10a{len(l2tobj.blocks) - 1}\ue10a"


def replaced(pattern: Pattern, replace: Callable[[Match], str], text: str) -> str:
    """A text in which no match is left, also none that a replacement has made."""
    before = ""
    while before != text:
        before, text = text, pattern.sub(replace, text)
    return text


def script(found: Match) -> str:
    """A superscript or subscript; the mark and the text, if Unicode lacks one of the characters."""
    mark, text = found[1], found[2] or found[3] or ""
    table = SCRIPTS[mark]
    if all(ord(character) in table for character in text):
        return text.translate(table)
    return (mark + (text if len(text) == 1 else f"({text})")).translate(TO_LITERAL)
