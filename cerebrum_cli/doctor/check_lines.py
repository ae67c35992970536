"""Checks on a terminal: a line for each, and the check of the terminal itself."""

from __future__ import annotations

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.text import strip_controls
from cerebrum_cli.doctor.assessment import CheckResult, Status, check_result
from cerebrum_cli.terminal.streams import Streams, is_dumb_terminal

STATUS_COLORS: dict[Status, str] = {"ok": "32", "warning": "33", "failure": "1;31"}
STATUS_WIDTH = len("warning") + 2
NAME_WIDTH = len("hugging_face_cache") + 2


def check_terminal(streams: Streams) -> CheckResult:
    import locale

    if not streams.out_is_terminal:
        styles = "with styles (FORCE_COLOR)" if streams.can_style else "without colors"
        return check_result(f"none: standard output is a pipe or a file; it gets UTF-8 {styles}")
    term = environment("TERM")
    encoding = locale.getencoding()
    facts = [term or "TERM is not set", f"{streams.columns} columns", encoding]
    if environment("NO_COLOR") is not None:
        facts.append("no colors (NO_COLOR)")
    if environment("ACCESSIBLE") is not None:
        facts.append("screen reader mode (ACCESSIBLE)")
    problems = []
    if term is None or is_dumb_terminal():
        problems.append(("no redrawing, and Markdown stays plain text", "set TERM, usually to xterm-256color"))
    if encoding.lower().replace("-", "") != "utf8":
        problems.append(("some characters may be displayed incorrectly", "use a UTF-8 locale: export LANG=C.UTF-8"))
    return check_result(", ".join(facts), *problems)


def print_check_result(streams: Streams, result: CheckResult) -> None:
    head = result.status.ljust(STATUS_WIDTH) + result.name.ljust(NAME_WIDTH)
    text = streams.wrapped(result.detail, len(head))
    if result.hint:
        text += f"\n{' ' * len(head)}" + streams.wrapped(f"hint: {result.hint}", len(head))
    streams.answer(streams.styled(result.status, STATUS_COLORS[result.status]), is_styled=True)
    streams.answer(strip_controls(f"{head.removeprefix(result.status)}{text}\n"))
