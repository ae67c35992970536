"""Mathematics in LaTeX as Unicode text. What is not known stays as it was written."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from rich.text import Text

INLINE_MATH = re.compile(
    r"\\\((?P<round>(?:(?!\\\()[^`]){1,999}?)\\\)|\\\[(?!\d+\\\])(?P<square>(?:(?!\\\[)[^`]){1,999}?)\\\]"
    r"|\$\$(?P<double>[^$`]{1,999})\$\$|(?<![\w\\])\$(?P<single>(?!\s)[^$`]{1,500}(?<![\s\\]))\$(?![\w${(])"
)
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
NO_BRACKET = re.compile(r"\n|\\(?:left|right)\.")
UNKNOWN = re.compile(r"\\[a-zA-Z]+(?:\{[^{}]*\})+")  # macros with their arguments
RELATION = re.compile(r"([=×±∓≤≥≠≈≡→⟹⟺∈∉⊂⊆∪∩∧∨])")
ATOM = re.compile(r"[\d.,]*|[^\W\d]+[′₀-₉⁰-⁹]?|\([^()]*\)|√\w")
# Macros that show their argument, and those that show nothing.
PLAIN = "text textrm textit textbf mathrm mathit mathsf mathbf mathtt operatorname mbox boldsymbol"
INVISIBLE = "left right middle big Big bigl bigr Bigl Bigr bigg Bigg ! displaystyle limits nonumber"
# Macros with the text they stand for, in which %s is their argument, where pylatexenc knows none, or another one.
OTHERS = """implies ⟹, iff ⟺, dots …, cdots ⋯, mid |, lvert |, rvert |, ne ≠, checkmark ✓, lt <, gt >, | ‖, % %,
bmod mod, { \ue102, } \ue103, boxed \ue100%s\ue101, pmod (mod %s), overline %s\u0305, bar %s\u0304, underline %s\u0332,
vec %s\u20d7, hat %s\u0302, dot %s\u0307, tilde %s\u0303, widehat %s\u0302"""
MACROS = {
    **dict.fromkeys(PLAIN.split(), "%s"),
    **dict.fromkeys(INVISIBLE.split(), ""),
    **dict.fromkeys(("binom", "dbinom"), "C(%s, %s)"),
    **dict(macro.strip().split(" ", 1) for macro in OTHERS.split(",")),
}
FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
BRACKETS = {"pmatrix": "()", "bmatrix": "[]", "Bmatrix": "{}", "vmatrix": "||", "Vmatrix": "‖‖"}
LINES = ("matrix", "aligned", "align", "equation", "gather", "gathered", "split", "array", "cases", "multline")


def formula(source: str) -> Text:
    """Mathematics with its delimiters, as Unicode by rows; as it is, if it is no valid LaTeX."""
    found = DELIMITED.fullmatch(source)
    text = to_unicode(found["latex"]) if found else None
    if found is None or text is None:
        return Text(source)
    pieces = re.split(f"[{BOLD}]", text + found["after"])
    return Text.assemble(*zip(pieces, ["", "bold"] * len(pieces), strict=False))


def is_mathematics(found: re.Match[str]) -> bool:
    """Whether what is between the delimiters of mathematics is not other text."""
    content = next(filter(None, found.groups()))
    has_operator = re.search(r"[\\^_=<>+*/|]", content) is not None
    if found["single"]:
        return has_operator or re.fullmatch(r"[\d.,]+|\w\w?", content) is not None
    return has_operator or re.search(r"[^\W\d_]{3}", content) is None


def to_unicode(latex: str) -> str | None:
    """LaTeX as Unicode, with line breaks between its rows; None if it is not valid."""
    from pylatexenc.latex2text import LatexNodes2Text
    from pylatexenc.latexwalker import LatexWalker, LatexWalkerError

    parsing, writing = contexts()
    writer = LatexNodes2Text(
        writing,
        keep_braced_groups=True,
        keep_braced_groups_minlen=0,
        keep_comments=True,
        strict_latex_spaces={"between-macro-and-chars": False, "between-latex-constructs": True},
    )
    try:
        nodes, _, _ = LatexWalker(NO_BRACKET.sub(" ", latex), parsing, tolerant_parsing=False).get_latex_nodes()
        text = UNKNOWN.sub(lambda unknown: unknown[0].translate(TO_LITERAL), writer.nodelist_to_text(nodes))
    except (LatexWalkerError, RecursionError, ValueError):
        return None
    text = re.sub("[{}]", "", with_scripts(text)).translate(FROM_LITERAL)
    return "\n".join(" ".join(RELATION.sub(r" \1 ", row).split()) for row in text.strip().split("\n"))


@cache
def contexts() -> tuple[Any, Any]:
    """What pylatexenc parses, and how it writes that: its own definitions, with ours above them."""
    from pylatexenc import latex2text, latexwalker
    from pylatexenc.latex2text import EnvironmentTextSpec, MacroTextSpec
    from pylatexenc.macrospec import std_macro

    parsing, writing = latexwalker.get_default_latex_context_db(), latex2text.get_default_latex_context_db()
    parsed = [std_macro(name, False, text.count("%s")) for name, text in MACROS.items() if "%s" in text]
    parsed += [std_macro(name, False, 2) for name in FRACTIONS]
    written = [MacroTextSpec(name, text or None, discard=not text) for name, text in MACROS.items()]
    written += [MacroTextSpec(name, fraction) for name in FRACTIONS]
    environments = [EnvironmentTextSpec(name, rows) for name in (*BRACKETS, *LINES, *(f"{name}*" for name in LINES))]
    parsing.add_context_category("here", parsed, prepend=True)
    writing.add_context_category("here", [*written, MacroTextSpec("sqrt", root)], environments, prepend=True)
    writing.set_unknown_macro_spec(MacroTextSpec("", verbatim))
    writing.set_unknown_environment_spec(EnvironmentTextSpec("", refuse))
    return parsing, writing


def verbatim(node: Any) -> str:
    return str(node.latex_verbatim().translate(TO_LITERAL))


def refuse(node: Any) -> str:
    raise ValueError(f"unknown environment: {node.environmentname}")


def fraction(node: Any, l2tobj: Any) -> str:
    return "/".join(factor(l2tobj.node_arg_to_text(node, place)) for place in (0, 1))


def root(node: Any, l2tobj: Any) -> str:
    degree, radicand = (l2tobj.node_arg_to_text(node, place) for place in (0, 1))
    return f"{degree.translate(SCRIPTS['^'])}√{factor(radicand)}"


def factor(text: str) -> str:
    """A part of a fraction, in parentheses unless it is a number, a word or a bracket."""
    text = with_scripts(text)
    return text if ATOM.fullmatch(text) else f"({text})"


def rows(node: Any, l2tobj: Any) -> str:
    """The rows of an environment, each in brackets if it is a matrix of that kind."""
    brackets = BRACKETS.get(node.environmentname, "")
    lines = map(str.strip, l2tobj.nodelist_to_text(node.nodelist).split("\n"))
    return "\n".join(f"{brackets[:1]}{line}{brackets[1:]}" for line in lines if line)


def with_scripts(text: str) -> str:
    """A text with its superscripts and subscripts, from the innermost ones."""
    before = ""
    while before != text:
        before, text = text, SCRIPT.sub(script, text)
    return text


def script(found: re.Match[str]) -> str:
    """A superscript or subscript; the mark and the text, if Unicode lacks one of the characters."""
    mark, text = found[1], found[2] or found[3] or ""
    table = SCRIPTS[mark]
    if all(ord(character) in table for character in text):
        return text.translate(table)
    return (mark + (text if len(text) == 1 else f"({text})")).translate(TO_LITERAL)
