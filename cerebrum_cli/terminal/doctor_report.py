"""What `doctor` found, as lines, and what it finds of the terminal they are written to."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from cerebrum_cli.application.doctor.check_result import CheckResult, Status, check_result
from cerebrum_cli.core.settings import environment
from cerebrum_cli.terminal.control import strip_controls
from cerebrum_cli.terminal.streams import DUMB_TERMINALS, Streams, columns, is_plain_terminal

STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
STATUS_WIDTH = len("warning") + 2
NAME_WIDTH = len("hugging_face_cache") + 2
LEAST_TEXT = 30  # columns; where there are fewer beside the names, what is told stands below them
TRY = "try: "


@dataclass(frozen=True, slots=True)
class Screen:
    """What standard output is written to; `encoding` is the user's, whatever we write."""

    is_terminal: bool
    columns: int
    encoding: str
    term: str | None
    colorterm: str | None
    no_color: bool
    accessible: bool


def check_terminal(streams: Streams) -> CheckResult:
    """Return what there is to say of the terminal."""
    import locale

    return judged_screen(
        Screen(
            streams.out_is_terminal,
            columns(streams.out),
            locale.getencoding(),
            environment("TERM"),
            environment("COLORTERM"),
            environment("NO_COLOR") is not None,
            environment("ACCESSIBLE") is not None,
        )
    )


def judged_screen(screen: Screen) -> CheckResult:
    """Judge a terminal by what it can show."""
    if not screen.is_terminal:
        return check_result("terminal", "none: standard output is a pipe or a file; it gets UTF-8 without colors")
    reader = ", for a screen reader (ACCESSIBLE)" if screen.accessible else ""
    detail = f"{screen.term or 'TERM is not set'}, {screen.columns} columns, {_colors(screen)}, {screen.encoding}"
    problems = []
    if screen.term is None or screen.term in DUMB_TERMINALS:
        problems.append(("no redrawing, and Markdown stays plain text", "set TERM, usually to xterm-256color"))
    if screen.encoding.lower().replace("-", "") != "utf8":
        problems.append(("some characters may be shown wrongly", "choose a UTF-8 locale: export LANG=C.UTF-8"))
    return check_result("terminal", detail + reader, *problems)


def _colors(screen: Screen) -> str:
    if screen.no_color:
        return "no colors (NO_COLOR)"
    if screen.term is None or screen.term in DUMB_TERMINALS:
        return "no colors"
    if screen.colorterm in ("truecolor", "24bit"):
        return "24-bit color"
    return "256 colors" if "256color" in screen.term else "colors"


def print_check_result(streams: Streams, finding: CheckResult) -> None:
    """Print a finding: in a pipe a line, and one for what to do; on a terminal in as many as it takes."""
    width = columns(streams.out) - 1 if streams.out_is_terminal else None
    text = finding_text(finding, width)
    if not streams.out_is_terminal or is_plain_terminal():
        streams.answer(text)
        return
    from rich.console import Console
    from rich.text import Text

    shown = Text(strip_controls(text))
    shown.stylize(STYLES[finding.status], 0, len(finding.status))
    with streams.writing_answer():
        Console(file=streams.out).print(shown, soft_wrap=True, end="")
        streams.out.flush()


def finding_text(finding: CheckResult, width: int | None) -> str:
    """Return the lines of a finding, no word broken; without a width, what is told is one line however long."""
    status, name = finding.status.ljust(STATUS_WIDTH), finding.name
    told = [finding.detail, *([TRY + finding.hint] if finding.hint else [])]
    indent = STATUS_WIDTH + NAME_WIDTH
    if width is None:
        first, *more = told
        return "".join(
            f"{line}\n" for line in [status + name.ljust(NAME_WIDTH) + first, *(" " * indent + m for m in more)]
        )
    beside = width - indent >= LEAST_TEXT
    margin = " " * (indent if beside else 2)
    lines = [line for text in told for line in _wrapped(text, width, margin)]
    head = status + name.ljust(NAME_WIDTH)
    if beside:
        lines[0] = head + lines[0].lstrip()
    else:
        lines.insert(0, head.rstrip())
    return "".join(f"{line}\n" for line in lines)


def _wrapped(text: str, width: int, margin: str) -> list[str]:
    deeper = margin + " " * (len(TRY) if text.startswith(TRY) else 0)
    return textwrap.wrap(
        text, width, initial_indent=margin, subsequent_indent=deeper, break_long_words=False, break_on_hyphens=False
    ) or [margin]
