"""Answers, status lines, errors and tables on a terminal and in a pipe."""

import os
import re
import signal
import threading
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from cases import rows
from rich.cells import cell_len
from screen import Screen, ScreenFile
from waiting import wait_until

from cerebrum_cli.cli.model_tables import print_catalogue, print_models
from cerebrum_cli.core.errors import CerebrumError, EngineError, Interrupted
from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    LoadEvent,
    NoticeEvent,
    PromptEvent,
    SequenceId,
    TallyEvent,
    Timings,
    TokenEvent,
)
from cerebrum_cli.terminal import interrupts, status_line
from cerebrum_cli.terminal.interrupts import Signals
from cerebrum_cli.terminal.markdown import renderer
from cerebrum_cli.terminal.progress import FileProgress
from cerebrum_cli.terminal.sinks import AnswerSink, render, stats_line
from cerebrum_cli.terminal.status_line import StatusLine
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.styles import styled_console
from cerebrum_cli.terminal.tables import print_matches, print_sessions

ONE, TWO = SequenceId(0), SequenceId(0, 1)
FINISH = FinishEvent(ONE, "stop", 12, 0, 5, 42, 2048, Timings(0.5, 1.0, 1.25, 2.0, 12, 4))


def piped() -> Streams:
    return Streams(StringIO(), StringIO(), None, False, False, False)


def shown(columns: int = 80) -> Streams:
    """Streams that are terminals."""
    return Streams(ScreenFile(columns, 24), ScreenFile(columns, 24), None, True, True, True)


def written(stream: object) -> str:
    assert isinstance(stream, StringIO)
    return stream.getvalue()


def screen(stream: object) -> Screen:
    assert isinstance(stream, ScreenFile)
    return stream.screen


# Sinks.


@pytest.mark.parametrize(
    ("texts", "out"), [(["a", "b"], "ab\n"), (["a\n"], "a\n"), ([], ""), (["a\x1b[31", "mb"], "a\x1b[31mb\n")]
)
def test_text_sink_pipes_text_unchanged_with_a_final_newline(texts: list[str], out: str) -> None:
    streams = piped()
    render((TokenEvent(ONE, text) for text in texts), lambda: None, [AnswerSink(streams, True)])
    assert written(streams.out) == out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_render_on_a_signal_cancels_and_closes_the_reply(number: signal.Signals) -> None:
    streams = piped()
    log: list[str] = []

    def events(*, ends: bool) -> Generator[Event, None, None]:
        try:
            yield TokenEvent(ONE, "so far") if ends else LoadEvent(1.0)
            os.kill(os.getpid(), number)
            while not ends:
                pass
            yield TokenEvent(ONE, ", and the rest")
            yield FINISH._replace(reason="cancelled")
        finally:
            log.append("closed")

    before = signal.getsignal(number)
    for ends in (True, False):
        with pytest.raises(Interrupted) as caught:
            render(events(ends=ends), lambda: log.append("cancelled"), [AnswerSink(streams, True)])
        assert caught.value.exit_code == 128 + number
    assert written(streams.out) == "so far, and the rest\n"
    assert log == ["cancelled", "closed"] * 2
    assert signal.getsignal(number) == before


INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize(
    ("signals", "command_exits", "chat_exits"),
    [
        ((INT, INT), [130], [130]),
        ((INT, TERM), [143], []),
        ((INT, HUP), [129], []),
        ((TERM, INT), [130], []),
        ((TERM, TERM), [143], []),
        ((TERM, HUP), [], []),
        ((HUP, INT), [130], []),
        ((HUP, TERM), [143], []),
        ((HUP, HUP), [], []),  # of a terminal that closes
    ],
)
def test_render_exits_on_a_second_signal(
    signals: tuple[int, int], command_exits: list[int], chat_exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def events() -> Generator[Event, None, None]:
        yield TokenEvent(ONE, "so far")
        for number in signals:
            signal.raise_signal(number)

    exits: list[int] = []
    monkeypatch.setattr(interrupts, "exit_process", exits.append)
    with pytest.raises(Interrupted):
        render(events(), lambda: None, [])
    assert exits == command_exits
    exits.clear()
    with pytest.raises(Interrupted), Signals(piped()) as chat_signals:
        render(events(), lambda: None, [], chat_signals)
    assert exits == chat_exits


@pytest.mark.parametrize("number", [INT, TERM, HUP])
def test_signal_before_the_first_action_of_a_command_raises(number: signal.Signals) -> None:
    with pytest.raises(Interrupted) as caught, Signals(hint="run it again"):
        signal.raise_signal(number)
        pytest.fail("the signal was ignored")
    assert (caught.value.exit_code, caught.value.hint) == (128 + number, "run it again")


@pytest.mark.parametrize(("cost", "share"), [(0.001, 0.03), (0.03, 0.04)])
def test_drawing_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch, cost: float, share: float) -> None:
    now, spent = [0.0], [0.0]

    def costly(*arguments: Any) -> list[Any]:
        now[0] += cost / 2  # of two calls
        spent[0] += cost / 2
        return []

    monkeypatch.setattr(renderer, "render_rows", costly)
    monkeypatch.setattr(renderer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stream = renderer.MarkdownStream(styled_console(ScreenFile(80, 24), width=80, height=24))
    for _ in range(2000):
        now[0] += 0.005
        stream.feed("word ")
    assert 0 < spent[0] < now[0] * share


# Status line.


def test_status_line_shows_nothing_for_a_short_wait() -> None:
    streams = shown()
    line = StatusLine(streams, "model")
    for event in (LoadEvent(0.0), LoadEvent(1.0), PromptEvent(ONE, 0, 9), PromptEvent(ONE, 9, 9), FINISH):
        line.emit(event)
    line.close()
    assert written(streams.err) == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_status_line_shows_a_long_wait_and_is_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_line, "SHOW_AFTER_S", 0.02)
    streams = shown()
    cases: list[tuple[StatusLine, list[tuple[Event, str]]]] = [
        (
            StatusLine(streams, "a \x1b[31mmodel"),
            [
                (LoadEvent(0.25), "loading a model 25%"),
                (LoadEvent(0.75), "loading a model 75%"),
                (PromptEvent(ONE, 128, 1024), "reading 128 of 1,024 tokens"),
                (TokenEvent(ONE, "hi"), ""),
            ],
        ),
        (
            StatusLine(streams, "model", vote=(3, 5)),
            [
                (PromptEvent(ONE, 1024, 1024), "no answer yet (0 of 3-5 samples, 0 tokens)"),
                (TokenEvent(TWO, "so", tokens=range(5)), "no answer yet (0 of 3-5 samples, 5 tokens)"),
                (FINISH._replace(has_all_tokens=False), "no answer yet (0 of 3-5 samples, 5 tokens)"),
                (
                    TallyEvent((("4/5", 3), ("x" * 60, 1)), 4, 3, 5),
                    f"4/5 x3 · {'x' * 38}… (4 of 3-5 samples, 5 tokens)",
                ),
            ],
        ),
        (StatusLine(streams, "m" * 200), [(LoadEvent(0.5), f"loading {'m' * 69}")]),  # no wider than the terminal
    ]
    for line, events in cases:
        for event, expected in events:
            line.emit(event)
            wait_until(partial(lambda text: "".join(screen(streams.err).lines) == text, expected))
        line.close()
        assert screen(streams.err).lines == []
    assert "\x1b[31m" not in written(streams.err)
    assert not screen(streams.err).cursor_hidden
    assert written(streams.out) == ""


def test_status_line_logs_now_and_then_on_a_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCESSIBLE", "1")
    streams = shown()
    line = StatusLine(streams, "model")
    for _ in range(2):
        line.emit(TokenEvent(ONE, "so", "thinking"))
    assert written(streams.err) == ""
    line.plain_every = 0.0
    line.emit(TokenEvent(ONE, "so", "thinking"))
    assert written(streams.err) == "reasoning: 3 tokens\n"


def test_file_progress_on_a_terminal_is_a_bar_below_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("no\n"))
    notice = NoticeEvent("the Hub is in trouble\x1b[2J (503)", "trying again in 2 s")
    text = "note: the Hub is in trouble (503): trying again in 2 s"
    streams = shown()
    with FileProgress(streams) as files:
        files.update("download", 10_000_000, 30_000_000)
        files.notice(notice)
        files.close()
        assert streams.confirm("Go on?") is False
        files.update("download", 30_000_000, 30_000_000)
        files.update("verify", 10_000_000, 30_000_000)
    first, *_, bar = screen(streams.err).lines
    assert first == text
    assert bar.startswith("download") and "30.0/30.0 MB" in bar
    assert not screen(streams.err).cursor_hidden
    for other, expected in ((piped(), f"{text}\n"), (replace(shown(), is_quiet=True), "")):
        with FileProgress(other) as files:
            files.update("download", 10_000_000, 30_000_000)
            files.notice(notice)
        assert written(other.err) == expected


# Streams.


def test_confirm_asks_only_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for reply, yes in (("\n", True), ("y\n", True), ("YES\n", True), ("n\n", False), ("what\n", False), ("", False)):
        monkeypatch.setattr("sys.stdin", StringIO(reply))
        streams = shown()
        assert streams.confirm("Pull it?") is yes
        assert written(streams.err) == "Pull it? [Y/n] " + "\n" * (not reply)
    monkeypatch.setattr("sys.stdin", StringIO("\n"))
    assert shown().confirm("Delete it?", default=False) is False
    assert not piped().confirm("Pull it?")
    assert not replace(shown(), in_is_terminal=False).confirm("Pull it?")


RED_ERROR = "\x1b[38;5;131merror: \x1b[0m"


def test_errors_print_message_hint_and_log_without_controls() -> None:
    in_a_pipe = piped()
    in_a_pipe.error(CerebrumError("a\x1b[2Jb\u202e", "c\x07d\u2066"))
    in_a_pipe.draw("e\x1b]52;c;RVZJTA==\x07f\n")
    assert written(in_a_pipe.err) == "error: ab\n hint: cd\nef\n"
    streams = shown()
    streams.error(CerebrumError("a\x1b[2Jb\u202e", "c\x07d\u2066"))
    streams.error(CerebrumError("alone"))
    streams.error(EngineError("no memory", "less", log=["alloc failed", "of 9 GB"]))
    assert written(streams.err) == (
        f"{RED_ERROR}ab\n hint: cd\n{RED_ERROR}alone\n"
        f"{RED_ERROR}no memory\n hint: less\n  log: alloc failed\n  log: of 9 GB\n"
    )


# Tables.

ROWS = rows("table_rows")
LONG = "a note " * 60
PATH = "/a/very/long/path/" * 12 + "model.gguf"
MODEL = {**ROWS["model"], "path": PATH}
AVAILABLE = {**ROWS["available"], "title": LONG}


def test_tables_in_a_pipe_are_not_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    streams = piped()
    print_models(streams, [MODEL, {**MODEL, "repo_id": "a/b"}, {**MODEL, "path": "/home/ann/my models/c.gguf"}])
    head, first, second, third = written(streams.out).splitlines()
    assert head.split() == ["name", "quant", "size", "format", "context", "speed", "last", "used", "where"]
    assert first.split() == f"* collective-cognition-7b Q4_K_M 4.37 GB - 32768 - 2026-11-20 {PATH}".split()
    assert second.endswith("  hf.co/a/b")
    assert third.endswith("  ~/my models/c.gguf")
    streams = piped()
    row = {**AVAILABLE, "here": False, "license": None}
    print_catalogue(streams, [row, {**row, "recommended": None, "size": None}])
    assert "no         Q4_K_M    4.37 GB  6.00 GB  tight  -      reasoning  -        a note" in written(streams.out)
    assert LONG.strip() in written(streams.out)
    assert not [line for line in written(streams.out).splitlines() if line != line.rstrip()]


@pytest.mark.parametrize(
    ("columns", "heads"), [(80, ["name", "size", "memory", "fit", "speed", "good for"]), (40, ["name", "size", "fit"])]
)
def test_narrow_tables_drop_columns(columns: int, heads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    models, catalogue = shown(columns), shown(columns)
    print_models(models, [MODEL])
    print_catalogue(catalogue, [AVAILABLE])
    for streams in (models, catalogue):
        head, row = screen(streams.out).lines
        assert row.removeprefix("*").lstrip().startswith("collective-cognition")
        assert "…" not in row
        assert max(map(len, (head, row))) <= columns
    assert re.split(" {2,}", head) == heads


def test_table_cells_take_one_line_and_may_be_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    streams = replace(piped(), out_is_terminal=True)
    sessions = (("two\nlines", "東京" * 30), ("名前", "Why?"))
    print_sessions(streams, [{**ROWS["session"], "name": name, "first": first} for name, first in sessions])
    head, first, second = written(streams.out).splitlines()
    assert first.split()[:2] == ["two", "lines"] and first.endswith("…")
    assert cell_len(first) <= 44
    assert cell_len(second[: second.index("Why?")]) == head.removeprefix("\x1b[1m").index("first message")


def test_matches_wrap_between_words() -> None:
    streams = shown()
    excerpt = "…to bed. Why do cats sleep, and why so long? The cat of a neighbor says that…"
    print_matches(streams, [{"session": "cats", "created": "2026-11-20T10:20:30", "role": "user", "excerpt": excerpt}])
    assert screen(streams.out).lines == [
        "cats  2026-11-20  user: …to bed. Why do cats sleep, and why so long? The cat",
        "  of a neighbor says that…",
    ]


def test_stats_line() -> None:
    assert stats_line(FINISH, "starter", "embedded", False, "temperature 0 (default)") == (
        "starter | format embedded | load 0.50 s | weights as in the file (not repacked)"
        " | prompt 12 tokens, 12.0 t/s | generated 5 tokens, 2.0 t/s"
        " | first token 1.25 s | context 2048 | temperature 0 (default) | seed 42 | finish reason stop"
    )
    cached = FINISH._replace(cached_tokens=10, timings=Timings())
    assert "weights repacked where possible | prompt 12 tokens (10 cached) |" in stats_line(cached, "m", "f", True, "")
