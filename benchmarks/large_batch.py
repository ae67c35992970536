"""Measure what a batch of a million rows costs beside its engine: reading, journaling, resuming and completing.

Usage: python benchmarks/large_batch.py [--rows N] [--dry-run]

The engine is simulated: it answers every prompt immediately with the same text, in the order in which the batch starts
the prompts, which is not the order of the input. Everything else is real: the input file, the windows of rows, the
journal with its syncs to the disk, and the result. Each run is a process of its own.

speed   Rows per second in the last tenth of the rows against the first tenth.
memory  Peak memory of N rows less that of N / 10 rows, by the difference in rows.
resume  A process is killed with SIGKILL when nine tenths of the rows are done. Seconds from the start of the next one
        to its first new answer, against the seconds in which the killed one had written its rows. Every row it had
        written must be in the result as it was, and no row may have been answered twice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness import Row, argument_parser, record, run, time_limit

from cerebrum_cli.batch.answering import BatchOptions, answer_rows
from cerebrum_cli.batch.journal import open_journal
from cerebrum_cli.batch.output_files import output_paths
from cerebrum_cli.batch.readers import open_input, read_rows
from cerebrum_cli.batch.rows import result_rows
from cerebrum_cli.core.events import Event, FinishEvent, RowEvent, SequenceId, Timings, TokenEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.inference.reply import ReplyRequest

ROWS = 1_000_000
PARTS = 10
TEXT = "The train covers 120 km in 1.5 hours. " * 7 + "So its speed is 80 km/h. The answer is 80."  # 77 words
MOST_BYTES = 100  # of memory a row


def main() -> None:
    """Run the batches, and record their rows."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"rows of the input [default: {ROWS:,}]")
    parser.add_argument("--child", nargs=3, metavar=("INPUT", "OUTPUT", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        source, output, name = options.child
        answer_file(Path(source), Path(output), name)
        return
    with tempfile.TemporaryDirectory() as directory:
        record(measure(Path(directory), options.rows), options.dry_run)


def measure(directory: Path, rows: int) -> Iterator[Row]:
    label = f"batch of {rows:,} rows, an engine that answers immediately"
    small, large = write_input(directory / "small.jsonl", rows // PARTS), write_input(directory / "in.jsonl", rows)
    few = run(child(small, directory / "few.jsonl", "a"))
    many = run(child(large, directory / "many.jsonl", "a"))
    times = [report["seconds"] for report in reports(many.output)]
    first, last = (rows / PARTS / (times[part] - times[part - 1]) for part in (1, PARTS))
    before, after = times[0], times[-1] - times[PARTS]
    print(f"{times[-1]:.1f} s: {before:.2f} s to begin, {after:.2f} s to complete; {many.peak_mib:.0f} MiB", flush=True)
    yield Row(
        f"{label}: rows/s in the last tenth / in the first", f"{last:,.0f}", f"{first:,.0f}", last / first, ">= 0.9"
    )
    size = (many.peak_mib - few.peak_mib) * 2**20 / (rows - rows // PARTS)
    yield Row(f"{label}: memory a row", f"{size:.0f} bytes", f"{MOST_BYTES} bytes", size / MOST_BYTES, "<= 1")
    yield resume_row(label, large, directory / "killed.jsonl", rows)


def resume_row(label: str, source: Path, output: Path, rows: int) -> Row:
    """Kill a batch when nine tenths of its rows are done, run it again, and check the result."""
    with process(child(source, output, "first")) as killed:
        assert killed.stdout is not None
        before = [json.loads(killed.stdout.readline()) for _ in range(PARTS)][-1]
        killed.kill()
    with output_paths(output).partial.open("rb") as lines:
        written = sum(line.endswith(b"\n") for line in lines)
    start = time.perf_counter()
    with process(child(source, output, "second")) as resumed:
        assert resumed.stdout is not None
        first, *others = [resumed.stdout.readline()]
        seconds = time.perf_counter() - start
        others += resumed.stdout.readlines()
    answered = json.loads(others[-1])["done"] - json.loads(first)["done"]
    with output.open("rb") as lines:
        names = Counter(json.loads(line)["text"].partition(":")[0] for line in lines)
    if names != {"first": written, "second": rows - written}:
        raise RuntimeError(f"{written} of {rows} rows were written first, but the result has {dict(names)}")
    if answered != rows - written:
        raise RuntimeError(f"{answered} rows were answered again, not {rows - written}")
    ratio = seconds / before["seconds"]
    peer = f"{before['seconds']:.1f} s to write {written:,} rows"
    return Row(f"{label}: kill -9 at 90 %, time to resume", f"{seconds:.1f} s", peer, ratio, "<= 0.5")


def write_input(path: Path, rows: int) -> Path:
    """Write rows whose prompts are sorted in another order than that of the file."""
    with path.open("w", encoding="utf-8") as lines:
        for number in range(rows):
            prompt = f"{number * 7919 % rows}: a train covers 120 km in 1.5 hours. What is its speed in km/h?"
            lines.write(json.dumps({"id": f"row-{number}", "prompt": prompt}) + "\n")
    return path


def child(source: Path, output: Path, name: str) -> list[str]:
    """The command that answers a file; its answers begin with a name."""
    return [sys.executable, __file__, "--child", str(source), str(output), name]


@contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes its reports to a pipe."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as started, time_limit(started):
        yield started


def reports(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


# In a child process.


def answer_file(source: Path, output: Path, name: str) -> None:
    """Answer the rows of a file as `cerebrum batch` does; print a report at the start, after each tenth, and last."""
    start, tenth = time.perf_counter(), 0

    def report(done: int) -> None:
        print(json.dumps({"done": done, "seconds": time.perf_counter() - start}), flush=True)

    options = BatchOptions(Settings(), ())
    responder: Any = SimulatedResponder(f"{name}: {TEXT}")
    with closing(open_input(source)) as file:
        rows = read_rows(file, "jsonl")
        with closing(open_journal(output, {"input": rows.sha256}, result_rows(rows))) as result:
            for event in answer_rows(responder, rows, options, result, in_order=False):
                if isinstance(event, RowEvent) and event.done * PARTS >= tenth * event.total:
                    report(event.done)
                    tenth = event.done * PARTS // event.total + 1
            result.complete()
            report(len(result.finished))


class SimulatedEngine:
    """An engine that is never cancelled, and answers rows in one group."""

    schedules_rows = False

    def cancel_scope(self) -> Any:
        return SimpleNamespace(is_cancelled=False)

    def group_by_length(self, requests: Iterable[Request]) -> list[list[int]]:
        return [list(range(len(list(requests))))]


class SimulatedResponder:
    """Answers every prompt with the same text; a token is a byte."""

    larger_context = ""

    def __init__(self, text: str) -> None:
        self.engine = SimulatedEngine()
        self._text = text

    def load(self) -> Iterator[Event]:
        return iter(())

    def check_settings(self, settings: Settings) -> None:
        """Do nothing: there is no vocabulary."""

    def tokenize_request(self, request: ReplyRequest) -> Request:
        prompt = tuple(request.conversation.messages[-1].content.encode())
        return Request(prompt, request.settings.sampling(()))

    def generate(self, requests: Iterable[Request], _: Any) -> SimulatedReplies:
        return SimulatedReplies(requests, self._text)


class SimulatedReplies:
    """Replies to requests, one after the other."""

    def __init__(self, requests: Iterable[Request], text: str) -> None:
        self._requests = requests
        self._text = text

    def __iter__(self) -> Iterator[Event]:
        for index, request in enumerate(self._requests):
            sequence, length = SequenceId(index), len(request.prompt_tokens)
            yield TokenEvent(sequence, self._text, tokens=(1,))
            yield FinishEvent(sequence, "stop", length, 0, 100, 1, 4096, Timings())

    def forget(self, index: int) -> None:
        """Do nothing: nothing is held."""

    def close(self) -> None:
        """Do nothing: nothing is held."""


if __name__ == "__main__":
    main()
