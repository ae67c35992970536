"""Batches over two llama-servers of which some are killed: every row is answered once, and nothing finished again."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import SCRIPT, Row, time_limit
from server import LlamaServer, send

from cerebrum_cli.batch.output_files import output_paths

TOKENS, SLOTS, CONTEXT = 8, 4, 256
POLL_S = 0.05
TASK = "processing task"  # what llama-server logs when it starts a completion


def failover_rows(directory: Path, model: Path, count: int, environment: Mapping[str, str]) -> Iterator[Row]:
    """Kill servers and batches in the middle of `count` rows."""
    source = write_rows(directory / "rows.jsonl", count)
    servers = [LlamaServer(directory, model, CONTEXT, 1, SLOTS) for _ in range(2)]

    def batch(name: str) -> Batch:
        return Batch(source, directory / name, model, [server.url for server in servers], environment)

    try:
        for server in servers:
            server.start()
        yield server_killed_row(batch("server.jsonl"), servers, count)
        yield head_killed_row(batch("head.jsonl"), servers, count)
        yield all_killed_row(batch("all.jsonl"), servers, count)
    finally:
        for server in servers:
            server.stop(signal.SIGKILL)


def server_killed_row(batch: Batch, servers: Sequence[LlamaServer], count: int) -> Row:
    """Kill one server after a quarter of the rows, and start it again after half of them."""
    killed, _ = servers
    with batch.running() as process:
        batch.wait_for(count // 4, process)
        killed.stop(signal.SIGKILL)
        before = tasks([killed])
        batch.wait_for(count // 2, process)
        killed.start()
    after = tasks([killed]) - before
    print(f"one server killed: {before} requests before, {after} after it was started again; {batch.errors.strip()}")
    if process.returncode or not after:
        raise RuntimeError(f"the batch exits with {process.returncode}: {batch.errors}")
    label = f"batch of {count} rows over two llama-servers, one killed and restarted: rows answered once / rows"
    return Row(label, str(batch.answered_once), str(count), batch.answered_once / count, ">= 1")


def head_killed_row(batch: Batch, servers: Sequence[LlamaServer], count: int) -> Row:
    """Kill the batch after a third of its rows, and run it again."""
    with batch.running() as process:
        batch.wait_for(count // 3, process)
        process.kill()
    wait_until_idle(servers)
    label = f"batch of {count} rows over two llama-servers, itself killed and run again"
    return rerun_row(label, batch, servers, count)


def all_killed_row(batch: Batch, servers: Sequence[LlamaServer], count: int) -> Row:
    """Kill both servers after a third of the rows; once the batch has given up, start them and run it again."""
    with batch.running() as process:
        batch.wait_for(count // 3, process)
        start = time.monotonic()
        for server in servers:
            server.stop(signal.SIGKILL)
    seconds = time.monotonic() - start
    done, errors = batch.written, batch.errors.strip()
    print(f"both servers killed: exit {process.returncode} after {seconds:.0f} s, {len(done)} rows: {errors}")
    if process.returncode != 1 or batch.output.exists() or any(row["error"] for row in done):
        raise RuntimeError(f"the batch exits with {process.returncode}: {errors}")
    for server in servers:
        server.start()
    label = f"batch of {count} rows, both llama-servers killed: exit 1; run again"
    return rerun_row(label, batch, servers, count)


def rerun_row(label: str, batch: Batch, servers: Sequence[LlamaServer], count: int) -> Row:
    """Run a batch again to its end, and compare the requests with the rows that were left."""
    left, before = count - len(batch.written), tasks(servers)
    with batch.running() as process:
        pass
    asked = tasks(servers) - before
    if process.returncode or batch.answered_once != count:
        raise RuntimeError(f"{batch.answered_once} of {count} rows are answered once: {batch.errors}")
    return Row(f"{label}: requests then / rows left", str(asked), str(left), asked / left, "<= 1")


class Batch:
    """A run of `cerebrum batch` that may be killed and repeated."""

    def __init__(
        self, source: Path, output: Path, model: Path, urls: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.output = output
        self._command = [SCRIPT, "batch", str(source), "-o", str(output), "-m", str(model), "-n", str(TOKENS)]
        self._command += [part for url in urls for part in ("--endpoint", url)]
        self._environment = environment
        self._log = output.with_suffix(".log")

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start it, and wait for its end on leaving."""
        with (
            self._log.open("wb") as log,
            subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            ) as process,
            time_limit(process),
        ):
            yield process

    def wait_for(self, rows: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until so many rows are written. RuntimeError if it ends before."""
        while self._written_lines < rows:
            if process.poll() is not None:
                raise RuntimeError(f"the batch ended with {process.returncode} before {rows} rows: {self.errors}")
            time.sleep(POLL_S)

    @property
    def _written_lines(self) -> int:
        partial = output_paths(self.output).partial
        return partial.read_bytes().count(b"\n") if partial.exists() else 0

    @property
    def written(self) -> list[dict[str, Any]]:
        """The rows of the unfinished result, each of which must be whole, but for the last of a killed batch."""
        lines = output_paths(self.output).partial.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    @property
    def answered_once(self) -> int:
        """Number of rows of the input that the result has once and without an error; 0 if their order differs."""
        rows = [json.loads(line) for line in self.output.read_bytes().splitlines()]
        if [row["id"] for row in rows] != [f"row-{number}" for number in range(len(rows))]:
            return 0
        return sum(row["error"] is None for row in rows)

    @property
    def errors(self) -> str:
        return self._log.read_text(errors="replace")


def write_rows(path: Path, count: int) -> Path:
    rows = ({"id": f"row-{number}", "prompt": f"What is {number} + {number * 7 % 100}?"} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tasks(servers: Sequence[LlamaServer]) -> int:
    """Number of completions that the servers have started."""
    return sum(server.log.count(TASK) for server in servers)


def wait_until_idle(servers: Sequence[LlamaServer]) -> None:
    """Wait until the servers have noticed that nobody waits for their replies."""
    while any(is_processing(server) for server in servers):
        time.sleep(POLL_S)


def is_processing(server: LlamaServer) -> bool:
    status, data = send(server.port, "GET", "/slots")
    return status != 200 or any(slot["is_processing"] for slot in json.loads(data))
