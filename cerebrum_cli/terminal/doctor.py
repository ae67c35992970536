"""Print the results of `cerebrum doctor`, and check the terminal."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from cerebrum_cli.core.settings import environment
from cerebrum_cli.doctor.check_result import CheckResult, Status, check_result
from cerebrum_cli.terminal.escapes import strip_controls
from cerebrum_cli.terminal.streams import DUMB_TERMINALS, Streams, columns, is_plain_terminal

STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
STATUS_WIDTH = len("warning") + 2
NAME_WIDTH = len("hugging_face_cache") + 2
MIN_TEXT_WIDTH = 30  # columns; on a narrower terminal the text is below the name, not beside it
HINT_PREFIX = "hint: "


@dataclass(frozen=True, slots=True)
class TerminalInfo:
    """Standard output, and the environment that programs adapt to; `encoding` is the locale's."""

    is_terminal: bool
    columns: int
    encoding: str
    term: str | None
    colorterm: str | None
    no_color: bool
    accessible: bool


def check_terminal(streams: Streams) -> CheckResult:
    """Check what the terminal can display."""
    import locale

    return assess_terminal(
        TerminalInfo(
            streams.out_is_terminal,
            columns(streams.out),
            locale.getencoding(),
            environment("TERM"),
            environment("COLORTERM"),
            environment("NO_COLOR") is not None,
            environment("ACCESSIBLE") is not None,
        )
    )


def assess_terminal(terminal: TerminalInfo) -> CheckResult:
    """Warn if the terminal cannot be redrawn or does not use UTF-8."""
    if not terminal.is_terminal:
        return check_result("terminal", "none: standard output is a pipe or a file; it gets UTF-8 without colors")
    mode = ", screen reader mode (ACCESSIBLE)" if terminal.accessible else ""
    name = terminal.term or "TERM is not set"
    detail = f"{name}, {terminal.columns} columns, {_colors(terminal)}, {terminal.encoding}{mode}"
    problems = []
    if terminal.term is None or terminal.term in DUMB_TERMINALS:
        problems.append(("no redrawing, and Markdown stays plain text", "set TERM, usually to xterm-256color"))
    if terminal.encoding.lower().replace("-", "") != "utf8":
        problems.append(("some characters may be displayed incorrectly", "use a UTF-8 locale: export LANG=C.UTF-8"))
    return check_result("terminal", detail, *problems)


def _colors(terminal: TerminalInfo) -> str:
    if terminal.no_color:
        return "no colors (NO_COLOR)"
    if terminal.term is None or terminal.term in DUMB_TERMINALS:
        return "no colors"
    if terminal.colorterm in ("truecolor", "24bit"):
        return "24-bit color"
    return "256 colors" if "256color" in terminal.term else "colors"


def print_check_result(streams: Streams, result: CheckResult) -> None:
    """Print a result: wrapped and colored on a terminal; in a pipe, one line and one for the hint."""
    text = format_check_result(result, columns(streams.out) - 1 if streams.out_is_terminal else None)
    if not streams.out_is_terminal or is_plain_terminal():
        streams.answer(text)
        return
    from rich.console import Console
    from rich.text import Text

    styled = Text(strip_controls(text))
    styled.stylize(STYLES[result.status], 0, len(result.status))
    with streams.writing_answer():
        Console(file=streams.out).print(styled, soft_wrap=True, end="")
        streams.out.flush()


def format_check_result(result: CheckResult, width: int | None) -> str:
    """Format a result, wrapped between words to a width; without a width nothing is wrapped."""
    head = result.status.ljust(STATUS_WIDTH) + result.name.ljust(NAME_WIDTH)
    texts = [result.detail, *([HINT_PREFIX + result.hint] if result.hint else [])]
    if width is None:
        return head + f"\n{' ' * len(head)}".join(texts) + "\n"
    is_beside = width - len(head) >= MIN_TEXT_WIDTH
    margin = " " * (len(head) if is_beside else 2)
    wrapped = "\n".join(line for text in texts for line in _wrap(text, width, margin))
    return (head + wrapped.removeprefix(margin) if is_beside else f"{head.rstrip()}\n{wrapped}") + "\n"


def _wrap(text: str, width: int, margin: str) -> list[str]:
    indent = margin + " " * (len(HINT_PREFIX) if text.startswith(HINT_PREFIX) else 0)
    return textwrap.wrap(
        text, width, initial_indent=margin, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [margin]
