"""Progress of batches, evaluations, stages and files on standard error; a line per minute where none is redrawn."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    LoadEvent,
    NoticeEvent,
    PromptEvent,
    RefusedEvent,
    SequenceId,
    ServersEvent,
    ServerTokens,
    StageEvent,
    TokenEvent,
)
from cerebrum_cli.core.row_events import EvalProgress, RowEvent
from cerebrum_cli.core.text import format_count, format_duration, format_size
from cerebrum_cli.terminal.status_line import LOG_EVERY_S, Line, Segment, StatusLine
from cerebrum_cli.terminal.streams import Streams, strip_controls

MIN_BAR, STAGE_BAR = 8, 20  # columns
BAR_COLUMNS = 57  # that a bar of stages or files needs
GREEN, RED, MAGENTA, GRAY = "32", "31", "35", "90"

Counts = RowEvent | EvalProgress


class BatchProgress(Line):
    """Progress of a batch or an evaluation: a bar if `draws`, otherwise a line per minute; a summary line at the end.

    A status line shows the loading of `model`, if given.
    """

    def __init__(self, streams: Streams, draws: bool, model: str | None = None) -> None:
        super().__init__(streams, draws, log=self._summary)
        self._status = StatusLine(streams, model or "", is_hidden=model is None)
        self._rows: Counts | None = None
        self._before = 0  # rows answered by earlier runs
        self._running = set[SequenceId]()
        self._servers: tuple[ServerTokens, ...] = ()
        self._phase = "preparing prompts"
        self._tokens = 0
        self._started = self._latest = 0.0  # when tokens and rows were reported; Ray takes seconds to stop after that

    def emit(self, event: Event) -> None:
        if isinstance(event, (LoadEvent, StageEvent)):
            self._status.emit(event)
            return
        self._status.close()
        if isinstance(event, NoticeEvent):
            super().close()
            self.streams.report(event)
        else:
            self._latest = time.monotonic()
            self._count(event)
        if self._rows:
            self.show()

    def _count(self, event: Event) -> None:
        match event:
            case PromptEvent(sequence, evaluated, total):
                self._running.add(sequence)
                if self._phase != "generating":
                    self._phase = "reading prompts" if evaluated < total else "generating"
                    self._started = self._started or self._latest
            case TokenEvent(sequence):
                self._running.add(sequence)
                self._phase = "generating"
                self._tokens += len(event.tokens)
            case FinishEvent(sequence) | RefusedEvent(sequence):
                self._running.discard(sequence)
                if isinstance(event, FinishEvent) and not event.has_all_tokens:  # it came without them
                    self._tokens += event.completion_tokens
            case ServersEvent(servers):
                self._servers = servers
            case RowEvent() | EvalProgress():
                if self._rows is None:
                    self._before = answered(event)
                self._rows = event

    def close(self) -> None:
        self._status.close()
        super().close()
        if not self._rows or isinstance(sys.exception(), BrokenPipeError) or self.streams.is_quiet:
            return
        self.streams.write_line("", self._summary())
        if isinstance(self._rows, RowEvent):
            counts = self._rows.counts
            for message in counts.errors:
                self.streams.write_line("  ", message)
            if counts.errors and (more := counts.failed - len(counts.errors)):
                self.streams.write_line("  ", f"and {more} more")

    @property
    def _all_tokens(self) -> int:
        return max(self._tokens, sum(server.tokens for server in self._servers))  # some servers send no ids

    def _summary(self) -> str:
        assert self._rows
        speed = ""
        tokens = self._all_tokens
        seconds = self._latest - (self._started or self._latest)
        if tokens and seconds:
            rates = server_rates([server._replace(is_lost=False) for server in self._servers], seconds)
            rate = f"{tokens / seconds:.1f} t/s" + (f": {rates}" if rates else "")
            speed = f"{tokens} tokens in {seconds:.1f} s ({rate})"
        done, total = counter(self._rows)
        of = format_count(total, "question") if isinstance(self._rows, EvalProgress) else total
        return ", ".join(filter(None, [f"{done} of {of} done", *exceptions(self._rows), speed]))

    def render(self, width: int) -> Iterator[Segment]:
        rows = self._rows
        seconds = time.monotonic() - self._started if self._started else 0.0
        assert rows
        done = answered(rows) - self._before
        left = self._phase
        if done:
            running = len({sequence.request for sequence in self._running})
            left = f"{format_duration(seconds_left(seconds, done, running, rows.total - rows.done))} left"
        speeds = []
        if seconds > 1 and self._all_tokens:
            speed, rates = f"{self._all_tokens / seconds:.1f} tokens/s", server_rates(self._servers, seconds)
            speeds = [f"{speed} ({rates})", speed] if rates else [speed]
        for texts in batch_texts(rows, speeds, left):
            done_text, clauses, tail = texts
            room = width - len(" ".join(filter(None, texts)))
            if room >= 0:
                break
        yield f"{done_text} ", GREEN
        if room > MIN_BAR:
            yield from (*bar(rows.done, rows.total, room - 1), (" ", ""))
        yield f"{clauses} " if clauses else "", RED if isinstance(rows, RowEvent) else ""
        yield tail, ""


class StageProgress(Line):
    """Progress of a long operation and its current stage: a bar on a terminal, otherwise a line per minute."""

    def __init__(self, streams: Streams, is_shown: bool = True) -> None:
        super().__init__(streams, streams.can_redraw and is_shown, log=self._text if is_shown else None)
        self._started = time.monotonic()
        self._stage = StageEvent("", 0, 1)

    def emit(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):
            self.close()
            self.streams.report(event)
        elif isinstance(event, StageEvent):
            self._stage = event
            self.show(now=True)

    def _text(self) -> str:
        return f"{self._stage.done} of {self._stage.total}: {self._stage.stage}"

    def render(self, width: int) -> Iterator[Segment]:
        stage = self._stage
        yield f"{stage.done:{len(str(stage.total))}}/{stage.total} ", GREEN
        if width >= BAR_COLUMNS:
            yield f"{format_duration(time.monotonic() - self._started)} ", ""
            yield from (*bar(stage.done, stage.total, STAGE_BAR), (" ", ""))
        yield stage.stage, ""


class FileProgress(Line, AbstractContextManager["FileProgress"]):
    """Progress of files: a bar for each stage on a terminal, otherwise lines at its start, every minute and its end."""

    def __init__(self, streams: Streams) -> None:
        super().__init__(streams, streams.can_redraw)
        self._current = ("", 0, 0)  # the stage, its bytes and their total
        self._started: dict[str, tuple[float, int]] = {}  # of each stage: the time, and the bytes there were
        self._shown: dict[str, tuple[float, int]] = {}

    def __exit__(self, *_: object) -> None:
        self.close()

    def notice(self, event: NoticeEvent) -> None:
        self.close()
        self.streams.report(f"note: {event.message}: {event.hint}")

    def update(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        self._started.setdefault(stage, (now, done))
        last, shown = self._shown.get(stage, (now - LOG_EVERY_S, 0))
        is_end = done >= total > shown
        self._current = stage, done, total
        if is_end and self.draws:
            self.keep()
        elif self.draws and done < total:
            self.show()
        elif not self.draws and (is_end or now - last >= LOG_EVERY_S):
            self.streams.report(f"{stage}: {self._text()}")
        if is_end or now - last >= LOG_EVERY_S:
            self._shown[stage] = now, done

    def render(self, width: int) -> Iterator[Segment]:
        stage, done, total = self._current
        yield f"{stage:<8} ", ""
        if width >= BAR_COLUMNS:
            yield from (*bar(done, total, STAGE_BAR), (" ", ""))
        yield self._text(), ""

    def _text(self) -> str:
        """Bytes done, speed and remaining time: "15 MB of 30 MB, 5 MB/s, 0:03 left"."""
        stage, done, total = self._current
        started, first = self._started[stage]
        seconds = time.monotonic() - started
        text = f"{format_size(done)} of {format_size(total)}"
        if done <= first or seconds <= 0:  # no speed yet
            return text
        speed = (done - first) / seconds
        left = f", {format_duration((total - done) / speed)} left" if done < total else ""
        return f"{text}, {format_size(int(speed))}/s{left}"


def bar(done: int, total: int, width: int) -> Iterator[Segment]:
    filled = min(width, int(width * done / total)) if total else width
    yield "━" * filled, MAGENTA if done < total else GREEN
    yield "━" * (width - filled), GRAY


def batch_texts(event: Counts, speeds: Sequence[str], left: str) -> Iterator[tuple[str, str, str]]:
    """Yield rows done, exceptions or a score, and speed and remaining time, each time with less of them.

    `speeds` are ways to state the speed, the longest first.
    """
    finished, total = counter(event)
    done, clauses = f"{finished:{len(str(total))}}/{total}", list(exceptions(event))
    yield from ((done, ", ".join(clauses), f"{speed} {left}") for speed in speeds)
    yield from ((done, ", ".join(clauses[:count]), left) for count in range(len(clauses), 0, -1))
    if isinstance(event, EvalProgress) and event.accuracy is not None:
        accuracy = f"accuracy {event.accuracy:.3f}"
        yield done, accuracy, left
        yield done, accuracy, ""
    yield done, "", left


def counter(event: Counts) -> tuple[int, int]:
    return (event.questions, event.all_questions) if isinstance(event, EvalProgress) else (event.done, event.total)


def seconds_left(seconds: float, done: int, running: int, remaining: int) -> float:
    """Estimate of the time for the remaining rows: those that run now are half done on average."""
    return seconds / (done + running / 2) * max(0.0, remaining - running / 2)


def answered(event: Counts) -> int:
    """The number of rows that took time: errors are mostly found before anything is generated."""
    return event.done - (event.counts.failed if isinstance(event, RowEvent) else 0)


def exceptions(event: Counts) -> Iterator[str]:
    if isinstance(event, RowEvent):
        counts = event.counts
        named = ((counts.failed, "failed"), (counts.truncated, "truncated"), (counts.undecided, "undecided"))
        yield from (f"{count} {text}" for count, text in named if count)
        return
    if event.accuracy is not None and event.interval is not None:
        low, high = event.interval
        yield f"accuracy {event.accuracy:.3f} ({low:.3f} to {high:.3f})"
    for share, text in ((event.no_answer, "no answer"), (event.cut_off, "truncated")):
        if share:
            yield f"{share:.0%} {text}"
    if event.skipped:
        yield f"{event.skipped} skipped"


def server_rates(servers: Sequence[ServerTokens], seconds: float) -> str:
    return ", ".join(
        f"{strip_controls(name).rpartition('://')[2]} {'lost' if is_lost else f'{tokens / seconds:.1f}'}"
        for name, tokens, is_lost in servers
    )
