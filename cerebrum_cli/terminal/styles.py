"""Styles of text: colors that no theme of a terminal changes, with a contrast of at least 4.5 on black and on white.

On the dark gray of many themes it is lower, 3.6 on #1e1e1e: no color has 4.5 there and on white, too.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.syntax import SyntaxTheme
    from rich.theme import Theme

COLORS = {"green": 29, "blue": 63, "purple": 98, "red": 131, "magenta": 163, "gray": 243}  # of the 256 colors of xterm

CODE_COLORS = {  # of the tokens of Pygments
    "gray": "Comment",
    "blue": "Keyword Literal.Number Name.Tag",
    "purple": "Comment.Preproc Keyword.Type Name.Attribute Name.Builtin Name.Exception Name.Namespace",
    "green": "Name.Class Name.Function Generic.Inserted",
    "magenta": "Operator.Word Name.Decorator Generic.Subheading",
    "red": "Literal.String Name.Constant Name.Variable Generic.Deleted Generic.Error Error",
}

SGR_CODES = {"bold": "1", "faint": "2"} | {color: f"38;5;{number}" for color, number in COLORS.items()}
SGR_CODES["question"] = f"1;{SGR_CODES['blue']}"
PROMPT_STYLES = {  # of prompt_toolkit
    "question": "bold fg:#5f5fff",  # the same
    "completion-menu.completion.current": "noreverse fg:#ffffff bg:#000000",  # whose default has a contrast of 3.5
}


def styled_console(file: IO[str], **options: Any) -> Console:
    """A rich console with our styles; `options` are further ones of it."""
    from rich.console import Console

    return Console(file=file, theme=console_theme(), color_system="256", **options)


def console_theme() -> Theme:
    """Styles of a rich console, in place of rich's colors, which are those of the terminal's theme."""
    from rich.theme import Theme

    names = {name: name for name in COLORS} | {
        "dim": "gray",
        "markdown.code": "green",
        "bar.back": "gray",
        "bar.complete": "magenta",
        "bar.finished": "green",
        "progress.download": "green",
        "progress.data.speed": "red",
        "progress.remaining": "blue",
        "progress.elapsed": "blue",
    }
    return Theme({style: f"color({COLORS[color]})" for style, color in names.items()})


def code_theme() -> SyntaxTheme:
    """Colors of code, without a background, whose spaces would be copied, and wrap in a narrower window."""
    from rich.style import Style
    from rich.syntax import ANSISyntaxTheme

    styles = {}
    for color, tokens in CODE_COLORS.items():
        for token in tokens.split():
            styles[tuple(token.split("."))] = Style(color=f"color({COLORS[color]})")
    return ANSISyntaxTheme(styles)
