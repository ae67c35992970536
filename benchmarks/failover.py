"""Batches over servers that fail, and of which some are killed: every row is answered once, and none again.

faulty   Four stand-ins that answer all but completions as a llama-server does. One refuses each completion, one sends
         headers and then nothing, one asks to wait for a day, and one replies after REPLY_S. Rows per second against
         the last one alone; a server may get one line in the log.
kills    Two llama-servers: KILLS times, one of them or the batch is killed with SIGKILL, at random, and started again.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from harness import SCRIPT, Row, time_limit
from server import HOST, LlamaServer, completion, send

from cerebrum_cli.results.results import output_paths
from cerebrum_cli.results.row_file import read_lines

TOKENS, SLOTS, CONTEXT = 8, 4, 256
POLL_S = 0.05
TASK = "processing task"  # what llama-server logs when it starts a completion
FAULTY_ROWS, REPLY_S = 600, 0.6
KILLS, KILL_ROWS, PAUSES_S = 20, 2000, (0.2, 1.5)

Behaviour = Literal["replies", "fails", "hangs", "waits a day"]


def failover_rows(directory: Path, model: Path, environment: Mapping[str, str]) -> Iterator[Row]:
    """Run batches over servers that fail or are killed."""
    servers = [LlamaServer(directory, model, CONTEXT, 1, SLOTS) for _ in range(2)]

    def batch(name: str, rows: int, urls: Sequence[str]) -> Batch:
        return Batch(write_rows(directory / f"{name}.in.jsonl", rows), directory / name, model, urls, environment)

    try:
        for server in servers:
            server.start()
        with ExitStack() as stack:
            behaviours: tuple[Behaviour, ...] = ("fails", "hangs", "waits a day", "replies")
            urls = [stack.enter_context(standing_in(servers[0], each)) for each in behaviours]
            yield faulty_row(batch("faulty", FAULTY_ROWS, urls), batch("alone", FAULTY_ROWS, urls[-1:]))
        urls = [server.url for server in servers]
        yield killed_row(batch("kills", KILL_ROWS, urls), servers)
    finally:
        for server in servers:
            server.stop(signal.SIGKILL)


def faulty_row(batch: Batch, alone: Batch) -> Row:
    """Compare a batch over servers of which one is healthy with one over that server."""
    seconds = []
    for each in (alone, batch):
        start = time.monotonic()
        with each.running() as process:
            pass
        seconds.append(time.monotonic() - start)
        if process.returncode or each.answered_once != FAULTY_ROWS:
            raise RuntimeError(f"{each.answered_once} rows are answered; exit {process.returncode}: {each.errors}")
    print(f"four servers, {seconds[1]:.0f} s: {batch.errors.strip()}")
    lines = [sum(url in line for line in batch.errors.splitlines()) for url in batch.urls]
    if max(lines) > 1 + seconds[1] // 300:
        raise RuntimeError(f"lines for each server: {lines}: {batch.errors}")
    rates = [FAULTY_ROWS / each for each in seconds]
    label = f"batch of {FAULTY_ROWS} rows over four servers, three of which fail, hang or refuse: rows/s / one alone"
    return Row(label, f"{rates[1]:.2f}", f"{rates[0]:.2f}", rates[1] / rates[0], ">= 0.9")


@contextmanager
def standing_in(server: LlamaServer, behaviour: Behaviour) -> Iterator[str]:
    """Stand in for a llama-server, on a thread; yield the URL."""
    body = {"prompt": [1, 2, 3], "n_predict": TOKENS, "return_tokens": True, "ignore_eos": True}
    reply = completion(server.port, json.dumps(body).encode())
    slots, hung = asyncio.Semaphore(SLOTS), asyncio.Event()  # which holds on to its tasks

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                method, path, _ = head.split(" ", 2)
                length = next((int(line[15:]) for line in head.lower().split("\r\n") if "content-length:" in line), 0)
                content = await reader.readexactly(length)
                if path == "/completion":
                    await complete(json.loads(content), writer)
                else:
                    status, data = await asyncio.to_thread(send, server.port, method, path, content or None)
                    writer.write(response(status, data))
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            writer.close()

    async def complete(asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if behaviour == "hangs":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            await hung.wait()
        if behaviour != "replies":
            status, extra = (500, "") if behaviour == "fails" else (429, "Retry-After: 86400\r\n")
            writer.write(response(status, b'{"error": {"message": "stand-in"}}', extra))
            return
        async with slots:
            await asyncio.sleep(REPLY_S)
        writer.write(response(200, json.dumps({**reply, "tokens_evaluated": len(asked["prompt"])}).encode()))

    async def serve() -> None:
        listener = await asyncio.start_server(answer, HOST, 0)
        started.put((listener.sockets[0].getsockname()[1], asyncio.get_running_loop(), asyncio.current_task()))
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    started: SimpleQueue[Any] = SimpleQueue()
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    port, loop, task = started.get()
    yield f"http://{HOST}:{port}"
    loop.call_soon_threadsafe(task.cancel)
    thread.join()


def response(status: int, content: bytes, extra: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\n{extra}Content-Length: {len(content)}\r\n\r\n".encode() + content


def killed_row(batch: Batch, servers: Sequence[LlamaServer]) -> Row:
    """Kill the batch or a server, and start it again, at random until this was done KILLS times."""
    draw, kills = random.Random(1), {"batch": 0, "server": 0}
    while sum(kills.values()) < KILLS:
        with batch.running() as process:
            while process.poll() is None and sum(kills.values()) < KILLS:
                time.sleep(draw.uniform(*PAUSES_S))
                victim = draw.choice([None, *servers])
                kills["server" if victim else "batch"] += 1
                if victim is None:
                    process.kill()
                    break
                victim.stop(signal.SIGKILL)
                time.sleep(draw.uniform(*PAUSES_S))
                victim.start()
        if batch.output.exists() and sum(kills.values()) < KILLS:
            raise RuntimeError(f"the batch ended after {kills}: exit {process.returncode}: {batch.errors}")
    if not batch.output.exists():
        with batch.running() as process:
            pass
    print(f"killed {kills}; exit {process.returncode}: {batch.errors.strip()}")
    label = f"batch of {KILL_ROWS} rows over two llama-servers, {KILLS} kills of these and itself: rows once / rows"
    return Row(label, str(batch.answered_once), str(KILL_ROWS), batch.answered_once / KILL_ROWS, ">= 1")


class Batch:
    """A run of `cerebrum batch` that may be killed and repeated."""

    def __init__(
        self, source: Path, output: Path, model: Path, urls: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.output = output
        self.urls = urls
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
        """Wait until this number of rows is written. RuntimeError if it ends before."""
        while self._written_lines < rows:
            if process.poll() is not None:
                raise RuntimeError(f"the batch ended with {process.returncode} before {rows} rows: {self.errors}")
            time.sleep(POLL_S)

    @property
    def _written_lines(self) -> int:
        return len(self.written)

    @property
    def written(self) -> list[dict[str, Any]]:
        """The finished rows of the unfinished result."""
        return list(map(json.loads, read_lines(output_paths(self.output).partial)))

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
