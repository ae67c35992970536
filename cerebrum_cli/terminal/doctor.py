"""Print the results of `cerebrum doctor`, and check the terminal."""

from __future__ import annotations

import textwrap

from cerebrum_cli.core.environment import environment
from cerebrum_cli.doctor.assessment import CheckResult, Status, check_result
from cerebrum_cli.terminal.escapes import strip_controls
from cerebrum_cli.terminal.streams import DUMB_TERMINALS, Streams, columns, is_plain_terminal

STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
STATUS_WIDTH = len("warning") + 2
NAME_WIDTH = len("hugging_face_cache") + 2
MIN_TEXT_WIDTH = 30  # columns; on a narrower terminal the text is below the name, not beside it
HINT_PREFIX = "hint: "


def check_terminal(streams: Streams) -> CheckResult:
    """Check what the terminal can display; warn if it cannot be redrawn or does not use UTF-8."""
    import locale

    if not streams.out_is_terminal:
        return check_result("none: standard output is a pipe or a file; it gets UTF-8 without colors")
    term, encoding = environment("TERM"), locale.getencoding()
    is_dumb = term is None or term in DUMB_TERMINALS
    if environment("NO_COLOR") is not None:
        colors = "no colors (NO_COLOR)"
    elif is_dumb:
        colors = "no colors"
    elif environment("COLORTERM") in ("truecolor", "24bit"):
        colors = "24-bit color"
    else:
        colors = "256 colors" if "256color" in str(term) else "colors"
    mode = ", screen reader mode (ACCESSIBLE)" if environment("ACCESSIBLE") is not None else ""
    detail = f"{term or 'TERM is not set'}, {columns(streams.out)} columns, {colors}, {encoding}{mode}"
    problems = []
    if is_dumb:
        problems.append(("no redrawing, and Markdown stays plain text", "set TERM, usually to xterm-256color"))
    if encoding.lower().replace("-", "") != "utf8":
        problems.append(("some characters may be displayed incorrectly", "use a UTF-8 locale: export LANG=C.UTF-8"))
    return check_result(detail, *problems)


def print_check_result(streams: Streams, result: CheckResult) -> None:
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
