r"""Mathematics in LaTeX as Unicode text: in align and equation, between \( \), \[ \], $$ and, by Pandoc's rule, $.

Between single $ there is a \, ^ or _, or only variables, numbers and signs. What is not understood stays as written.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from cerebrum_cli.core.text import Match, Pattern

# Scripts without spaces between words, and their punctuation.
IDEOGRAPHIC = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
# Brackets of a formula stand at the edges of words; those of sed 's/\(a\)/\1/' do not.
_BEFORE = rf"(?<![!#$%&')+./<?@\\\]^`}}])(?<![^\W_{IDEOGRAPHIC}])(?<![\w.)\]]\*|\\[(|])"
_AFTER = rf"(?!\.[a-z]|\*[^\s*.,;:)])(?=\Z|[\s)\]}}\"':,;.!?<|*_~{IDEOGRAPHIC}-]|[^\w\0-\x7f]|(?:th|st|nd|rd)\b)"
INLINE_MATH = re.compile(
    rf"{_BEFORE}\\\((?:(?!\\[()])[^`]){{1,999}}?\\\){_AFTER}"
    # \[1\] and \[a-z\] are brackets that Markdown must not read
    rf"|{_BEFORE}\\\[(?=\s|[^\]]{{0,999}}(?:\\[a-zA-Z]|\w[\^_]))(?:(?!\\[\[\]])[^`]){{1,999}}?\\\]{_AFTER}"
    r"|(?<!\\)\$\$[^$`]{1,999}(?<!\\)\$\$"
    # neither beside an end of a regular expression, as in ^a*$|^b*$, nor before the variable of a path
    r"|(?<![\\$)}\]+?])(?<![\w.)\]]\*)\$(?!\s|[,;]|\|\^)(?=[^$]*[\\^_])"
    r"(?:[^$`\\]|\\.){1,500}(?<![\s/:=(,])\$(?![\d$])"
    # a price begins with a number, and two words are no product
    rf"|{_BEFORE}\$(?=[(\[|]|-?[^\W\d_]|[\d.]++(?![kMB]\b)(?:[^\W\d_]|\{{,\}}|[^$]*[=<>]))(?![^$]* [^\W\d_]{{2}} )"
    rf"(?:[A-Z]{{3,4}}|(?:(?<![^\W\d_])(?:[^\W\d_]|[a-z]{{2}}|[A-Z]{{2}})(?![^\W\d_])|\{{,\}}|[\d\s+*/=<>≤≥!()\[\]|,.:'…-])"
    rf"{{1,99}}(?<!\s))\${_AFTER}"
)
# Quotes, comments, variables of a shell, groups of regular expressions; and options and sentences without a macro.
_NO_MATHEMATICS = re.compile(
    r"[\"`#@]|'\*|=~|(?<!\\)\$|\A[\s_]*\Z"
    r"|(?s:\A(?!.*\\[a-zA-Z]{2}).*?(?:[^\W\d_]{3,} [^\W\d_]{2,}|-[a-z]{3}|-[a-z] \w|\A\s*[a-z]{3,}\s*\Z))"
)

# Private-use characters: braces, script marks and bars that are text, the ends of a cell, a fraction and a function;
# and the ends of what stands above or below a sign.
_LITERAL = "\ue100\ue101\ue102\ue103\ue108"
_TO_LITERAL, _FROM_LITERAL = str.maketrans("{}^_", _LITERAL[:4]), str.maketrans(_LITERAL, "{}^_|")
_CELL_END = "\ue109"
_PARENTHESES = str.maketrans("\ue104\ue105", "()")
_MIXED_NUMBER = re.compile("(?<=\\d)\ue104(\\d+/\\d+)\ue105")
_LONE_FRACTION = re.compile("(?<![\\w)\ue105\ue107])\ue104([^\ue104\ue105]*)\ue105(?![\\w(√^_!∑∏∫\ue104\ue106])")
_FUNCTION_SPACE = re.compile("(?<=[\\w)\\]}∞'!∑∏∫\ue107])\ue106|\ue107(?=[^\\W_]|[√∑∏∫])")
_LONE_ROOT = re.compile(r"√\(([\d.,]+|\w)\)(?![\w(√^_!])")
# Not that of a name such as unit_price.
_SCRIPT = re.compile(r"([\^_])(?:\{([^{}^_]*)\}|(\d|(?<=\^)[^\s{}^_]|[^\s{}^_](?![^\W\d_])))")
SUPERSCRIPTS = str.maketrans(
    "0123456789+-−=(),'′∘⊤Tabcdefghijklmnoprstuvwxyz", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾,'′°ᵀᵀᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"
)
SUBSCRIPTS = str.maketrans("0123456789+-−=(),aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎,ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ")
# With what stands above or below it.
_RELATION = re.compile(
    r"\s*((?::=|=:|[=×÷±∓←-⇔⇝⟵-⟿∈-∍∖∘∝∥-∪∴∵∼-≋≐-⊓⊕-⊙⊢⊣⊨⋈⩽⩾·\ue108]+)"
    "(?:\ue10a[^\ue10a]*\ue10a)?)\\s*"
)
_BRACKET_SPACE = re.compile(r"(?<=[(\[⟨⌈⌊]) +| +(?=[)\]⟩⌉⌋])")
_SYMBOL = re.compile(r"\w|\([^()]*\)")
_NUMERATOR = re.compile(r"[\w.,∂]+|\([^()]*\)|√\w")
_DENOMINATOR = re.compile(r"[\d.,]+|[d∂Δ]?[^\W\d][²³⁰-⁹₀-₉ⁿ]*|\([^()]*\)|√\w")  # "ab" may be a product

# What pylatexenc does not know, or writes otherwise.
_UNSEEN = re.compile(
    r"\\(?:left|right)\.|\\(?:left|right|middle|[bB]igg?[lr]?|(?:display|text|script)style|(?:no)?limits|nonumber|notag"
    r"|hline|rm|bf|it|strut|mathstrut)(?![a-zA-Z])|(?<=\\operatorname)\*|\\(?:color|label|[hv]?phantom)\{[^{}]*\}"
)
_FUNCTIONS = """sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan log ln lg exp lim limsup liminf max min
sup inf gcd lcm det dim ker deg arg hom Pr Re Im argmax argmin sgn tr rank tg ctg arctg arcctg arccot cosec"""
_SYMBOLS = """implies ⟹, impliedby ⟸, iff ⟺, ne ≠, checkmark ✓, lt <, gt >, | ‖, land ∧, lor ∨, neg ¬, triangle △,
degree °, gets ←, leadsto ⇝, colon :, coloneqq :=, eqqcolon =:, mid \ue108, bot ⊥, models ⊨, vDash ⊨, nsim ≁, ncong ≇,
ddagger ‡, ddag ‡, cdotp ·, hdots …, imath ı, jmath ȷ, Box □, qed □, Diamond ◇, bigstar ★, copyright ©, pounds £,
euro €, yen ¥, S §, P ¶, R ℝ, N ℕ, Z ℤ, Q ℚ, C ℂ, bmod mod, mod mod, choose choose, lparen (, rparen ),
lbrack [, rbrack ], { \ue100, } \ue101, lbrace \ue100, rbrace \ue101"""
_PLAIN = """boxed fbox mbox texttt textsf textnormal textup mathbf mathit mathsf mathtt mathop mathrel mathbin mathord
boldsymbol bm pmb smash"""
_PATTERNS = """pmod (mod %s), pod (%s), tag (%s), binom (%s choose %s), dbinom (%s choose %s), tbinom (%s choose %s),
braket ⟨%s⟩, set \ue100%s\ue101, abs |%s|, norm ‖%s‖, operatorname \ue106%s\ue107, overset %(2)s\ue10a^{%(1)s}\ue10a,
stackrel %(2)s\ue10a^{%(1)s}\ue10a, underset %(2)s\ue10a_{%(1)s}\ue10a"""
_ARROWS = """xrightarrow →, xleftarrow ←, xleftrightarrow ↔, xRightarrow ⇒, xLeftarrow ⇐, xrightleftharpoons ⇌,
xmapsto ↦, xlongequal ="""
_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
_BRACES = ("underbrace", "overbrace")
_ACCENTS = {
    "vec": "\u20d7",
    "overrightarrow": "\u20d7",
    "hat": "\u0302",
    "widehat": "\u0302",
    "bar": "\u0304",
    "overline": "\u0305",
    "dot": "\u0307",
    "ddot": "\u0308",
    "tilde": "\u0303",
    "widetilde": "\u0303",
    "mathring": "\u030a",
    "cancel": "\u0336",
    "bcancel": "\u0336",
    "xcancel": "\u0336",
}
_BRACKETS = {
    "matrix": "[]",
    "pmatrix": "()",
    "bmatrix": "[]",
    "vmatrix": "||",
    "Vmatrix": "‖‖",
    "smallmatrix": "[]",
    "array": "  ",
    "cases": "\ue100\ue101",
    "dcases": "\ue100\ue101",
}
# Formulas of mhchem, in order.
_CHEMISTRY = (
    (re.compile("<=>+"), "⇌"),
    (re.compile("<->"), "↔"),
    (re.compile("->"), "→"),
    (re.compile(r"(?<=[^\W\d_]|[)\]])(\d+)"), r"_{\1}"),
    (re.compile(r"(?<=[\w)\]}])\^?\{?(\d*[+-])\}?(?![\w{])"), r"^{\1}"),
)


def is_mathematics(source: str) -> bool:
    """Whether what is between a text's delimiters has nothing that only code and sentences have."""
    return _NO_MATHEMATICS.search(_content(source)) is None


def formula(source: str, separator: str = "; ") -> str:
    """Mathematics with its delimiters as Unicode, its rows joined by a separator; as it is if it is not understood."""
    rows = _rows(_content(source))
    return source if rows is None else separator.join(rows)


def _content(source: str) -> str:
    if source.startswith(r"\begin"):
        return source
    width = 1 if re.match(r"\$(?!\$)", source) else 2
    return source[width:-width]


def _rows(latex: str) -> list[str] | None:
    """The rows of LaTeX as Unicode; None if it is not valid, or has a macro or an environment that is not known."""
    from pylatexenc.latexwalker import LatexWalker, LatexWalkerError

    parsing, writer = _parsing_and_writing()
    source = re.sub(r"\n|(?<!\\)~", " ", _UNSEEN.sub("", latex))
    source = re.sub(r"(?<!\\)%", r"\\%", source)  # it would begin a comment
    try:
        nodes, _, _ = LatexWalker(source, parsing, tolerant_parsing=False).get_latex_nodes()
        text = writer.nodelist_to_text(nodes)
    except (LatexWalkerError, RecursionError, ValueError):
        return None
    return [row for line in text.strip().split("\n") if (row := _with_spaces(line))]


@cache
def _parsing_and_writing() -> tuple[Any, Any]:
    """What pylatexenc parses, and what writes that."""
    from pylatexenc import latex2text, latexwalker
    from pylatexenc.latex2text import EnvironmentTextSpec, MacroTextSpec, SpecialsTextSpec
    from pylatexenc.macrospec import std_macro

    texts: dict[str, Any] = {name: f"\ue106{name}\ue107" for name in _FUNCTIONS.split()}
    texts |= dict.fromkeys(_PLAIN.split(), "%s") | _table(_SYMBOLS) | _table(_PATTERNS)
    macros = [std_macro(name, False, text.count("%")) for name, text in texts.items()]
    arrows = _table(_ARROWS)
    macros += [std_macro(name, True, 1) for name in arrows]
    macros += [std_macro(name, False, 2) for name in _FRACTIONS]
    macros += [std_macro(name, False, 1) for name in (*_ACCENTS, *_BRACES, "ce", "substack")]
    texts |= {name: f"{arrow}\ue10a_{{%s}}^{{%s}}\ue10a" for name, arrow in arrows.items()}
    texts |= dict.fromkeys(_FRACTIONS, _fraction) | dict.fromkeys(_ACCENTS, _accented)
    texts |= dict.fromkeys(_BRACES, _grouped) | {"sqrt": _root, "ce": _chemistry, "substack": _stacked}
    parsing = latexwalker.get_default_latex_context_db().filter_context(exclude_categories=["nonascii-specials"])
    parsing.add_context_category("ours", macros, prepend=True)
    writing = latex2text.get_default_latex_context_db()
    environments = [EnvironmentTextSpec(name, "%(body)s") for name in ("aligned", "gathered", "split")]
    environments += [EnvironmentTextSpec(name, _matrix) for name in _BRACKETS]
    cell_end = [SpecialsTextSpec("&", _CELL_END)]
    writing.add_context_category(
        "ours", [MacroTextSpec(*item) for item in texts.items()], environments, cell_end, prepend=True
    )
    writing.set_unknown_macro_spec(MacroTextSpec("", _refuse))
    writing.set_unknown_environment_spec(EnvironmentTextSpec("", _refuse))
    spaces = {"between-macro-and-chars": False, "between-latex-constructs": True}
    writer = latex2text.LatexNodes2Text(
        writing, keep_braced_groups=True, keep_braced_groups_minlen=0, strict_latex_spaces=spaces
    )
    return parsing, writer


def _table(rows: str) -> dict[str, str]:
    return dict(row.split(maxsplit=1) for row in rows.split(","))


def _refuse(node: Any, **_: Any) -> str:
    raise ValueError(f"unknown: {node}")


def _accented(node: Any, l2tobj: Any) -> str:
    letters = l2tobj.node_arg_to_text(node, 0)
    if not letters.isalnum():  # no accent of Unicode spans more
        _refuse(node)
    return "".join(letter + _ACCENTS[node.macroname] for letter in letters)


def _fraction(node: Any, l2tobj: Any) -> str:
    over, under = (_built_up(l2tobj.node_arg_to_text(node, place)).strip() for place in (0, 1))
    return f"\ue104{_factor(over, _NUMERATOR)}/{_factor(under, _DENOMINATOR)}\ue105"


def _factor(text: str, atom: Pattern) -> str:
    """A part of a fraction, in parentheses unless it is a number, a word or a bracket."""
    return text if atom.fullmatch(text) else f"({text})"


def _root(node: Any, l2tobj: Any) -> str:
    degree, radicand = (_built_up(l2tobj.node_arg_to_text(node, place)) for place in (0, 1))
    return f"{degree.translate(SUPERSCRIPTS)}√({radicand})"


def _grouped(node: Any, l2tobj: Any) -> str:
    return _factor(_built_up(l2tobj.node_arg_to_text(node, 0)), _SYMBOL)


def _stacked(node: Any, l2tobj: Any) -> str:
    return ", ".join(line.strip() for line in l2tobj.node_arg_to_text(node, 0).split("\n"))


def _chemistry(node: Any, l2tobj: Any) -> str:
    text: str = l2tobj.node_arg_to_text(node, 0)
    for written, shown in _CHEMISTRY:
        text = written.sub(shown, text)
    return text


def _matrix(node: Any, l2tobj: Any) -> str:
    rows = l2tobj.nodelist_to_text(node.nodelist).strip().split("\n")
    cells = [[cell.strip(" ,") for cell in row.split(_CELL_END)] for row in rows]
    brackets = _BRACKETS[node.environmentname]
    return brackets[0] + "; ".join(map(", ".join, cells)) + brackets[1]


def _built_up(text: str) -> str:
    """A text with its fractions, and then its superscripts and subscripts, from the innermost ones.

    A fraction or a root is in parentheses where it stands beside another factor, or is the argument of a function.
    """
    text = re.sub("(?<=[∂Δ]) +|(?<=\ue107) +(?=\ue104)", "", text)
    text = _LONE_FRACTION.sub(r"\1", _MIXED_NUMBER.sub(r" \1", text)).translate(_PARENTHESES)
    text = re.sub("[\ue106\ue107]", "", _FUNCTION_SPACE.sub(" ", text))
    before = ""
    while before != text:
        before, text = text, _SCRIPT.sub(_script, text)
    return _LONE_ROOT.sub(r"√\1", text)


def _script(found: Match) -> str:
    """A superscript or subscript; the mark and the text, if Unicode lacks one of the characters."""
    mark, text = found[1], (found[2] or found[3] or "").strip()
    table = SUPERSCRIPTS if mark == "^" else SUBSCRIPTS
    if all(ord(character) in table for character in text):
        return text.translate(table)
    return (mark + (text if len(text) == 1 else f"({text})")).translate(_TO_LITERAL)


def _with_spaces(text: str) -> str:
    """A row with its scripts, and with spaces around its relations."""
    text = re.sub("[{}]", "", _built_up(text)).replace(_CELL_END, " ")
    text = _BRACKET_SPACE.sub("", _RELATION.sub(r" \1 ", text)).replace("\ue10a", "")
    return " ".join(text.split()).translate(_FROM_LITERAL)
