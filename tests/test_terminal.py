"""What a person sees of an answer, of a wait, of an error and of a table; and what a pipe gets of them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from screen import ScreenFile

from cerebrum_cli.core.errors import CerebrumError, EngineError, Interrupted
from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    LoadEvent,
    NoticeEvent,
    PromptEvent,
    SequenceId,
    Timings,
    TokenEvent,
)
from cerebrum_cli.terminal import progress
from cerebrum_cli.terminal.bars import FileProgress
from cerebrum_cli.terminal.progress import StatusLine
from cerebrum_cli.terminal.sinks import MarkdownSink, NoticeSink, Sink, TextSink, answer_sink, render
from cerebrum_cli.terminal.streams import Streams, holds_input
from cerebrum_cli.terminal.tables import print_catalogue, print_description, print_models, stats_line

ONE = SequenceId(0)
FINISH = FinishEvent(ONE, "stop", 12, 0, 5, 42, 2048, Timings(0.5, 1.0, 1.25, 2.0, 12, 4))


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process's terminal an ordinary one, whatever the tests run in."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("ACCESSIBLE", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


def piped() -> Streams:
    """Return streams that nobody sits behind."""
    return Streams(StringIO(), StringIO(), None, False, False, False)


def shown(columns: int = 80, rows: int = 24) -> Streams:
    """Return streams that are screens."""
    return Streams(ScreenFile(columns, rows), ScreenFile(columns, rows), None, True, True, True)


def written(stream: object) -> str:
    """Return what was written to one of those streams."""
    assert isinstance(stream, StringIO)
    return stream.getvalue()


def lines(stream: object) -> list[str]:
    """Return what a screen shows."""
    assert isinstance(stream, ScreenFile)
    return stream.screen.lines


# Sinks.


def tokens(*texts: str) -> Generator[Event, None, None]:
    """Yield a reply of these texts."""
    for text in texts:
        yield TokenEvent(ONE, text)
    yield FINISH


def played(streams: Streams, sink: Callable[[Streams], TextSink | MarkdownSink], *texts: str) -> None:
    """Play a reply into one sink."""
    render(tokens(*texts), lambda: None, [sink(streams)])


@pytest.mark.parametrize(
    ("texts", "out"), [(["a", "b"], "ab\n"), (["a\n"], "a\n"), ([], ""), (["a\x1b[31", "mb"], "a\x1b[31mb\n")]
)
def test_a_pipe_gets_the_text_as_it_is_and_a_last_line_break(texts: list[str], out: str) -> None:
    streams = piped()
    played(streams, TextSink, *texts)
    assert written(streams.out) == out


@pytest.mark.parametrize("sink", [TextSink, MarkdownSink])
def test_a_terminal_gets_text_that_cannot_steer_it(sink: Callable[[Streams], TextSink | MarkdownSink]) -> None:
    streams = shown()
    played(streams, sink, "one \x1b", "]0;title", "\x07two\r", "\x1b[2J three \x1b]0;cut")
    assert lines(streams.out) == ["one two three ]0;cut"]
    assert "title" not in written(streams.out)


def test_thought_and_notices_stay_off_standard_output() -> None:
    streams = piped()
    events: list[Event] = [NoticeEvent("what is", "what to do"), TokenEvent(ONE, "hm", "thinking")]
    sinks: list[Sink] = [TextSink(streams), NoticeSink(streams)]
    for event in events:
        for sink in sinks:
            sink.emit(event)
    assert written(streams.out) == ""
    assert written(streams.err) == "note: what is\n      what to do\n"


def test_markdown_is_for_terminals_that_can_be_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(answer_sink(shown(), markdown=True), MarkdownSink)
    assert isinstance(answer_sink(shown(), markdown=False), TextSink)
    assert isinstance(answer_sink(piped(), markdown=True), TextSink)
    monkeypatch.setenv("ACCESSIBLE", "1")
    assert isinstance(answer_sink(shown(), markdown=True), TextSink)
    monkeypatch.delenv("ACCESSIBLE")
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(answer_sink(shown(), markdown=True), TextSink)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_reply_which_is_played_out_and_closed(number: signal.Signals) -> None:
    streams = piped()
    cancelled: list[bool] = []
    closed: list[bool] = []

    def events() -> Iterator[Event]:
        try:
            yield TokenEvent(ONE, "so far")
            os.kill(os.getpid(), number)
            yield TokenEvent(ONE, ", and the rest")
            yield replace(FINISH, reason="cancelled")
        finally:
            closed.append(True)

    def generator() -> Generator[Event, None, None]:
        yield from events()

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        render(generator(), lambda: cancelled.append(True), [TextSink(streams)])
    assert caught.value.exit_code == 128 + number
    assert written(streams.out) == "so far, and the rest\n"
    assert cancelled
    assert closed == [True]
    assert signal.getsignal(number) == before


def test_a_signal_before_anything_is_said_ends_even_what_never_yields() -> None:
    cancelled: list[bool] = []

    def events() -> Generator[Event, None, None]:
        yield LoadEvent(1.0)
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            pass

    with pytest.raises(Interrupted):
        render(events(), lambda: cancelled.append(True), [])
    assert cancelled == [True]


def test_a_sink_that_fails_closes_the_reply() -> None:
    closed: list[bool] = []

    def events() -> Generator[Event, None, None]:
        try:
            yield TokenEvent(ONE, "text")
        finally:
            closed.append(True)

    class Broken(StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return os.open(os.devnull, os.O_WRONLY)

    streams = replace(piped(), out=Broken())
    with pytest.raises(BrokenPipeError):
        render(events(), lambda: None, [TextSink(streams)])
    assert closed == [True]


# Waiting.


def test_a_short_wait_shows_nothing() -> None:
    streams = shown()
    line = StatusLine(streams, "model")
    for event in (LoadEvent(0.0), LoadEvent(1.0), PromptEvent(ONE, 0, 9), PromptEvent(ONE, 9, 9), FINISH):
        line.emit(event)
    line.close()
    assert written(streams.err) == ""
    assert not [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, threading.Timer) and not thread.finished.is_set()
    ]


def test_a_long_wait_shows_one_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.02)
    streams = shown()
    line = StatusLine(streams, "a \x1b[31mmodel")
    line.emit(LoadEvent(0.25))
    until(lambda: lines(streams.err) == ["loading a model 25%"])
    assert "\x1b[31m" not in written(streams.err)
    line.emit(LoadEvent(0.75))
    assert lines(streams.err) == ["loading a model 75%"]
    line.emit(PromptEvent(ONE, 128, 1024))
    assert lines(streams.err) == ["prompt: 128 of 1024 tokens"]
    line.emit(TokenEvent(ONE, "hi"))
    assert lines(streams.err) == []
    line.close()
    assert written(streams.out) == ""


def test_a_line_that_goes_away_is_no_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.0)
    streams = shown()
    line = StatusLine(streams, "m" * 200)
    line.emit(LoadEvent(0.5))
    until(lambda: len(lines(streams.err)) == 1)
    line.close()
    assert lines(streams.err) == []


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to be")


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("ACCESSIBLE", "1"), ("TERM", "xterm")])
def test_nothing_is_drawn_over_where_nobody_could_see_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.0)
    monkeypatch.setenv(name, value)
    streams = piped() if value == "xterm" else shown()
    line = StatusLine(streams, "model")
    line.emit(LoadEvent(0.5))
    time.sleep(0.02)
    line.close()
    assert written(streams.err) == ""


def test_files_elsewhere_than_on_a_terminal_are_a_line_a_stage_and_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    streams = piped()
    with FileProgress(streams, quiet=False) as files:
        for second, done in enumerate((0, 10, 20, 30)):
            now[0] = 1000.0 + 25 * second
            files.update("download", done * 1_000_000, 30_000_000)
        files.update("verify", 30_000_000, 30_000_000)
    assert written(streams.err).splitlines() == [
        "download: 0 kB of 30 MB",
        "download: 30 MB of 30 MB, 400 kB/s, 0 min left",
        "verify: 30 MB of 30 MB",
    ]
    with FileProgress(quiet := piped(), quiet=True) as files:
        files.update("download", 0, 1)
    assert written(quiet.err) == ""


def test_files_on_a_terminal_are_bars() -> None:
    streams = shown()
    with FileProgress(streams, quiet=False) as files:
        files.update("download", 15_000_000, 30_000_000)
        files.update("download", 30_000_000, 30_000_000)
    [line] = lines(streams.err)
    assert line.startswith("download")
    assert "30.0/30.0 MB" in line
    assert isinstance(streams.err, ScreenFile)
    assert not streams.err.screen.cursor_hidden


def test_what_is_told_while_a_file_comes_stands_above_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("no\n"))
    told = NoticeEvent("the Hub is in trouble\x1b[2J (503)", "trying again in 2 s")
    streams, quiet, elsewhere = shown(), shown(), piped()
    with FileProgress(streams, quiet=False) as files:
        files.update("download", 10_000_000, 30_000_000)
        files.notice(told)
        with files.paused():
            assert streams.confirm("Go on?") is False
        files.update("download", 30_000_000, 30_000_000)
    seen = lines(streams.err)
    assert seen[0] == "note: the Hub is in trouble (503): trying again in 2 s"
    assert seen[-1].startswith("download")
    assert "30.0/30.0 MB" in seen[-1]
    with FileProgress(elsewhere, quiet=False) as files:
        files.notice(told)
    assert written(elsewhere.err) == "note: the Hub is in trouble\x1b[2J (503): trying again in 2 s\n"
    with FileProgress(quiet, quiet=True) as files:
        files.notice(told)
    assert lines(quiet.err) == []


# Streams.


def test_a_question_is_asked_only_of_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    for reply, yes in (("\n", True), ("y\n", True), ("YES\n", True), ("n\n", False), ("what\n", False), ("", False)):
        monkeypatch.setattr("sys.stdin", StringIO(reply))
        streams = shown()
        assert streams.confirm("Pull it?") is yes
        assert written(streams.err) == "Pull it? [Y/n] " + "\n" * (not reply)
    monkeypatch.setattr("sys.stdin", StringIO("\n"))
    assert shown().confirm("Delete it?", default=False) is False
    assert not piped().confirm("Pull it?")
    assert not replace(shown(), in_is_terminal=False).confirm("Pull it?")


def test_errors_say_what_is_and_what_to_do_without_steering_the_terminal() -> None:
    streams = shown()
    streams.error(CerebrumError("a\x1b[2Jb", "c\x07d"))
    streams.error(CerebrumError("alone"))
    streams.error(EngineError("no memory", "less", log=["alloc failed", "of 9 GB"]))
    assert written(streams.err).splitlines() == [
        "error: ab",
        "  try: cd",
        "error: alone",
        "error: no memory",
        "  try: less",
        "  log: alloc failed",
        "  log: of 9 GB",
    ]


def test_an_object_is_one_line_of_utf_8() -> None:
    streams = piped()
    streams.answer_object({"text": "é\n\x1b"})
    assert written(streams.out) == '{"text": "é\\n\\u001b"}\n'


def test_only_pipes_and_files_hold_input(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with open(tmp_path / "file", "w+b") as file, open(os.devnull, "rb") as null:
        assert holds_input(reading)
        assert holds_input(file.fileno())
        assert not holds_input(null.fileno())
    os.close(reading)
    os.close(writing)
    assert not holds_input(reading)


# Tables.

LONG = "a note " * 60
PLACE = "/a/very/long/path/" * 12 + "model.gguf"


def listed(name: str = "collective-cognition-7b") -> dict[str, object]:
    """Return a row of `list`."""
    return {
        "name": name,
        "path": PLACE,
        "default": True,
        "quantization": "Q4_K_M",
        "size": 4_368_438_944,
        "format": None,
        "context_size": 32768,
        "last_used": "2026-11-20T11:00:00+00:00",
        "derived_from": None,
        "merged_from": [],
        "repo_id": None,
        "error": None,
    }


def known(**row: object) -> dict[str, object]:
    """Return a row of `list --available`."""
    quantizations = [
        {"quantization": "Q2_K", "size": 1, "verdict": "fits", "recommended": False},
        {"quantization": "Q4_K_M", "size": 4_368_438_944, "verdict": "tight", "recommended": True},
    ]
    return {"recommended": "Q4_K_M", "quantizations": quantizations, "licence": "mit", **row}


def test_tables_in_a_pipe_are_lines_that_nothing_is_cut_from() -> None:
    streams = piped()
    print_models(streams, [listed(), listed("b")])
    head, first, second = written(streams.out).splitlines()
    assert head.split() == ["name", "quant", "size", "format", "context", "last", "used", "where"]
    assert first.split() == ["*", "collective-cognition-7b", "Q4_K_M", "4.37", "GB", "-", "32768", "2026-11-20", PLACE]
    assert second.endswith(PLACE)
    streams = piped()
    row = known(name="a", here=False, licence=None, system=LONG)
    print_catalogue(streams, [row, {**row, "system": "short", "recommended": None, "quantizations": []}])
    assert "no         Q4_K_M    4.37 GB  tight    -        a note" in written(streams.out)
    assert LONG.strip() in written(streams.out)
    assert not [line for line in written(streams.out).splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("columns", [80, 40])
def test_tables_on_a_narrow_terminal_leave_out_their_last_columns_and_cut_no_name(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    models, catalogue = shown(columns, 24), shown(columns, 24)
    print_models(models, [listed()])
    print_catalogue(catalogue, [known(name="collective-cognition-7b", here=True, system=LONG)])
    for streams in (models, catalogue):
        head, row = lines(streams.out)
        assert row.removeprefix("*").lstrip().startswith("collective-cognition-7b")
        assert "…" not in row
        assert max(map(len, (head, row))) <= columns


def test_a_model_is_where_its_repository_is_or_its_path_from_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    streams = piped()
    print_models(streams, [{**listed(), "repo_id": "a/b"}, {**listed(), "path": "/home/ann/my models/c.gguf"}])
    _, first, second = written(streams.out).splitlines()
    assert first.endswith("  hf.co/a/b")
    assert second.endswith("  ~/my models/c.gguf")


def test_a_description_is_a_line_each() -> None:
    streams = piped()
    print_description(streams, {"name": "a\x1b[2J", "size": 98_362_432, "default": True, "repo_id": None})
    assert written(streams.out).splitlines() == [
        "name     a",
        "size     98 MB (98362432 bytes)",
        "default  yes",
        "repo_id  -",
    ]


def test_stats_are_one_line() -> None:
    assert stats_line(FINISH, "starter", "embedded") == (
        "starter | format embedded | load 0.50 s | prompt 12 tokens, 12.0 t/s | generated 5 tokens, 2.0 t/s"
        " | first token 1.25 s | context 2048 | seed 42 | finish reason stop"
    )
    cached = replace(FINISH, cached_tokens=10, timings=Timings())
    assert "prompt 12 tokens (10 cached) |" in stats_line(cached, "m", "f")
