"""Measure what a row that kills servers costs a batch, and what outages do.

Needs `cerebrum pull starter`.
Usage: python benchmarks/outages.py [--dry-run]

`cerebrum batch` asks stand-ins for llama-servers, in another process, which answer each row after REPLY_S. One that is
killed closes all its connections, and is back after DOWN_S.

killer   Two servers, each of which is killed by one row of ROWS as soon as it arrives. The time is compared with that
         of the other rows alone; that row gets an error, and all others are answered.
outages  One server that is gone twice, for DOWN_S each time. The time is compared with the shortest possible one.
"""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from answering import model_path
from harness import Row, argument_parser, in_subprocess, record
from large_batch import HOST, SLOTS, Batch, Speech, StandIn, speeches

REPLY_S, DOWN_S = 2.0, 1.0
ROWS, KILLER, OUTAGE_ROWS, OUTAGES_S = 3000, 700, 1000, (10.0, 20.0)
KILLING_TOKENS = 100  # of a prompt
MOST_KILLS = 8


def main() -> None:
    """Run the batches, and record their rows."""
    options = argument_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as directory:
        record(measure(Path(directory), model_path("starter")), options.dry_run)


def measure(directory: Path, model: Path) -> Iterator[Row]:
    batch = Batch(directory, model)
    [said] = in_subprocess(speeches, model, ["A reply"])
    times = []
    for killer in (None, KILLER):
        source = write_rows(directory / f"in-{killer}.jsonl", ROWS, killer)
        with running_servers(said, 2) as (urls, losses):
            times.append(run(batch, source, f"killer-{killer}", urls, 1 if killer else 0))
            kills = losses()
    label = f"batch of {ROWS} rows, two servers that one of them kills"
    yield Row(f"{label}: kills", str(kills), f"{MOST_KILLS} allowed", kills / MOST_KILLS, "<= 1")
    yield Row(
        f"{label}: time / without that row", f"{times[1]:.1f} s", f"{times[0]:.1f} s", times[1] / times[0], "<= 1.5"
    )
    source = write_rows(directory / "outages.jsonl", OUTAGE_ROWS, None)
    with running_servers(said, 1, OUTAGES_S) as (urls, losses):
        seconds = run(batch, source, "outages", urls, 0)
        if losses() != len(OUTAGES_S):
            raise RuntimeError(f"there were {losses()} outages")
    ideal = math.ceil(OUTAGE_ROWS / SLOTS) * REPLY_S
    label = f"batch of {OUTAGE_ROWS} rows of {REPLY_S:g} s, {SLOTS} at a time, {len(OUTAGES_S)} outages of {DOWN_S:g} s"
    yield Row(f"{label}: time / shortest possible", f"{seconds:.1f} s", f"{ideal:.1f} s", seconds / ideal, "<= 2")


def write_rows(path: Path, count: int, killer: int | None) -> Path:
    texts = ["Why? " * (KILLING_TOKENS if number == killer else 1) for number in range(count)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def run(batch: Batch, source: Path, name: str, urls: Sequence[str], errors: int) -> float:
    """Run a batch; return its seconds. RuntimeError unless so many rows have an error, and all others a reply."""
    start = time.perf_counter()
    with batch.process(source, name, urls) as process:
        pass
    seconds = time.perf_counter() - start
    rows = [json.loads(line) for line in batch.output(name).read_text().splitlines()]
    failed = [(row["id"], row["error"]) for row in rows if row["error"]]
    print(f"{name}: {seconds:.1f} s, exit {process.returncode}: {failed}")
    if len(failed) != errors:
        raise RuntimeError(f"{len(failed)} rows have errors instead of {errors}")
    return seconds


@contextmanager
def running_servers(said: Speech, count: int, outages: Sequence[float] = ()) -> Iterator[tuple[list[str], Any]]:
    """Run servers in another process; yield their URLs, and what asks how often they were gone."""
    spawning = get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=serve, args=(said, count, outages, theirs), daemon=True)
    process.start()

    def losses() -> Any:
        ours.send(None)
        return ours.recv()

    try:
        yield [f"http://{HOST}:{port}" for port in ours.recv()], losses
    finally:
        process.kill()
        process.join()


# In the process of the servers.


def serve(said: Speech, count: int, outages: Sequence[float], pipe: Connection) -> None:
    """Send the ports, and serve until the process is killed; answer how often servers were gone."""

    async def listen() -> None:
        servers = [Server(said, outages) for _ in range(count)]
        for server in servers:
            await server.start()
        pipe.send([server.port for server in servers])

        def answer() -> None:
            pipe.recv()
            pipe.send(sum(server.losses for server in servers))

        asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
        await asyncio.Event().wait()

    asyncio.run(listen())


class Server:
    """A port that may be closed for a while; each outage is so many seconds after its first completion."""

    def __init__(self, said: Speech, outages: Sequence[float]) -> None:
        self.port, self.losses = 0, 0
        self.connections = set[Delayed]()
        self._said, self._outages = said, outages
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Delayed(self._said, self), HOST, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def note_completion(self) -> None:
        for seconds in self._outages:
            asyncio.get_running_loop().call_later(seconds, self.fail)
        self._outages = ()

    def fail(self) -> None:
        if self._listener is None:
            return
        self._listener.close()
        self._listener, self.losses = None, self.losses + 1
        for connection in list(self.connections):
            connection.abort()
        loop = asyncio.get_running_loop()
        loop.call_later(DOWN_S, lambda: loop.create_task(self.start()))


class Delayed(StandIn):
    """A connection whose completions take REPLY_S; a long prompt kills the server."""

    def __init__(self, said: Speech, server: Server) -> None:
        super().__init__(said)
        self._server = server

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._server.connections.discard(self)

    def abort(self) -> None:
        self._transport.abort()

    def answer(self, path: str, body: bytes) -> None:
        if path == "/completion":
            self._server.note_completion()
            if len(json.loads(body)["prompt"]) >= KILLING_TOKENS:
                self._server.fail()
            else:
                asyncio.get_running_loop().call_later(REPLY_S, super().answer, path, body)
        else:
            super().answer(path, body)


if __name__ == "__main__":
    main()
