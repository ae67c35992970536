"""Measure what a batch of many rows costs beside its servers: CPU time and memory a row, and resuming.

Needs `cerebrum pull starter`.
Usage: python -m benchmarks.large_batch [--rows N] [--dry-run]

`cerebrum batch` runs in a process of its own, from the input to the complete result, with the starter's vocabulary.
Another process stands in for SERVERS llama-servers: it answers every prompt of about 100 tokens at once, with the same
reply of 300 tokens, in a stream with an event for each, as llama-server sends it.

cpu     CPU time of `cerebrum batch` for N rows less that for N / 10 rows, by the difference in rows.
memory  Peak memory likewise.
resume  The servers fall silent after nine tenths of the rows, and the process is killed with SIGKILL once these are
        written. Seconds from the start of the next one to its first new answer, against the seconds of the killed one
        up to the last answer. Every row it had written must be in the result as it was, and no row may have been
        answered twice.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.answering import loaded_model, model_path
from benchmarks.harness import (
    SCRIPT,
    Row,
    argument_parser,
    in_subprocess,
    isolated_environment,
    record,
    run,
    time_limit,
)
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.rows.saved import read_saved
from cerebrum_cli.servers.description import PROBE

ROWS = 5_000
PARTS = 10
SERVERS, SLOTS, CONTEXT = 2, 64, 8192
MOST_MS, MOST_BYTES = 25.0, 300  # a row
TIMEOUT_S = 600
HOST = "127.0.0.1"
HEADERS_END = b"\r\n\r\n"
QUESTION = """{}: A train leaves at {} o'clock, covers 120 km in 1.5 hours, and stops for a quarter of an hour. It
continues for another 40 km at two thirds of its former speed, while a second train starts from the other end of the
line. Explain each step of your reasoning, and state the average speed over the whole trip in km/h, with the pause."""
REPLY = """{}. Let us work through this step by step. The first train covers 120 km in 1.5 hours, so its speed is
120 / 1.5 = 80 km/h. It then stops for a quarter of an hour, which adds 0.25 hours to the trip without any distance.

After the stop, the train continues at two thirds of its former speed. Two thirds of 80 km/h is 80 * 2 / 3 = 53.33 km/h,
rounded to two decimals. For the remaining 40 km it therefore needs 40 / 53.33 = 0.75 hours, which is 45 minutes.

Now we can add up the times: 1.5 hours for the first part, 0.25 hours for the pause, and 0.75 hours for the second part.
Together that is 1.5 + 0.25 + 0.75 = 2.5 hours. The whole distance is 120 + 40 = 160 km.

As a check, 64 km/h for 2.5 hours is 160 km. So the average speed is 160 / 2.5 = 64 km/h, and the answer is 64."""


def main() -> None:
    """Run the batches, and record their rows."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"rows of the input [default: {ROWS:,}]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        record("Many rows on servers", measure(Path(directory), options.rows, model_path("starter")), options.dry_run)


def measure(directory: Path, rows: int, model: Path) -> Iterator[Row]:
    small, large = write_input(directory / "small.jsonl", rows // PARTS), write_input(directory / "in.jsonl", rows)
    batch = Batch(directory, model)
    first, second = in_subprocess(speeches, model, ["First", "Second"])
    label = f"batch of {rows:,} rows, {SERVERS} servers that answer at once with {len(first.tokens)} tokens"
    with running_servers(first) as servers:
        few = run(batch.command(small, "few", servers.urls), environment=batch.environment)
        many = run(batch.command(large, "many", servers.urls), environment=batch.environment)
    with running_servers(first, replies=rows * (PARTS - 1) // PARTS) as servers:
        seconds = kill(batch, large, servers)
    more = rows - rows // PARTS
    cpu_ms, size = (many.cpu_s - few.cpu_s) / more * 1e3, (many.peak_mib - few.peak_mib) * 2**20 / more
    print(
        f"{many.seconds:.1f} s, CPU {many.cpu_s:.1f} s, {few.cpu_s:.1f} s of {rows // PARTS:,}; {many.peak_mib:.0f} MiB"
    )
    yield Row(f"{label}: CPU time a row", f"{cpu_ms:.2f} ms", f"{MOST_MS} ms", cpu_ms / MOST_MS, "<= 1")
    yield Row(f"{label}: memory a row", f"{size:.0f} bytes", f"{MOST_BYTES} bytes", size / MOST_BYTES, "<= 1")
    with running_servers(second) as servers:
        yield resume_row(label, batch, large, servers, rows, seconds)


def kill(batch: Batch, source: Path, servers: Servers) -> float:
    """Kill a batch when its servers have sent all replies they send; return the seconds until then."""
    start = time.monotonic()
    with batch.process(source, "killed", servers.urls) as killed:
        servers.reply_time()
        end = servers.reply_time()
        killed.kill()
    return end - start


def resume_row(label: str, batch: Batch, source: Path, servers: Servers, rows: int, before: float) -> Row:
    """Run a killed batch again, and check the result."""
    output = batch.output("killed")
    saved = read_saved(output)
    written = len(saved.lines or ()) if saved else 0
    start = time.monotonic()
    with batch.process(source, "killed", servers.urls):
        seconds = servers.reply_time() - start
    with output.open("rb") as lines:
        found = [json.loads(line) for line in lines]
    names = Counter(each["text"].partition(".")[0] for each in found)
    if names != {"First": written, "Second": rows - written} or [each["id"] for each in found] != row_ids(rows):
        raise RuntimeError(f"{written} of {rows} rows were written first, but the result has {dict(names)}")
    peer = f"{before:.1f} s to write {written:,} rows"
    return Row(f"{label}: kill -9 at 90 %, time to resume", f"{seconds:.1f} s", peer, seconds / before, "<= 0.5")


def write_input(path: Path, rows: int) -> Path:
    with path.open("w", encoding="utf-8") as lines:
        for id in row_ids(rows):
            lines.write(json.dumps({"id": id, "prompt": QUESTION.format(id, len(id))}) + "\n")
    return path


def row_ids(rows: int) -> list[str]:
    return [f"row-{number}" for number in range(rows)]


class Batch:
    """Runs `cerebrum batch`, with its outputs in a directory."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.model = model
        self.environment = isolated_environment(directory)
        self._directory = directory

    def output(self, name: str) -> Path:
        return self._directory / f"{name}-answers.jsonl"

    def command(self, source: Path, name: str, urls: Sequence[str]) -> list[str]:
        endpoints = [part for url in urls for part in ("--endpoint", url)]
        return [SCRIPT, "batch", str(source), "-o", str(self.output(name)), "-m", str(self.model), *endpoints]

    @contextmanager
    def process(self, source: Path, name: str, urls: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        command = self.command(source, name, urls)
        with (
            subprocess.Popen(command, stderr=subprocess.DEVNULL, env=self.environment) as started,
            time_limit(started),
        ):
            yield started


class Speech(NamedTuple):
    """What a server says: the tokens of the probe by which vocabularies are compared, and those of each reply with its
    text; the last of them ends it.
    """

    probe: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str


def speeches(model: Path, names: Sequence[str]) -> list[Speech]:
    """Replies that begin with a name, in the vocabulary of a model; to be called in a subprocess."""
    with loaded_model(str(model), Settings()) as loaded:
        vocabulary = loaded.engine.vocabulary
        [end] = vocabulary.special_token_ids([vocabulary.special_token_text("eos")])
        probe, texts = vocabulary.tokenize((Text(PROBE),)), [REPLY.format(name) for name in names]
        return [Speech(probe, (*vocabulary.tokenize((Text(text),)), end), text) for text in texts]


class Servers(NamedTuple):
    """Servers that run in another process, which sends the times of the first reply and of the last."""

    urls: list[str]
    times: Connection

    def reply_time(self) -> float:
        """Wait for the next of these times, of the monotonic clock."""
        if not self.times.poll(TIMEOUT_S):
            raise RuntimeError("no reply was asked for")
        seconds: float = self.times.recv()
        return seconds


@contextmanager
def running_servers(said: Speech, replies: float = math.inf) -> Iterator[Servers]:
    """Run servers that fall silent after so many replies."""
    spawning = get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=serve, args=(said, replies, theirs), daemon=True)
    process.start()
    try:
        yield Servers([f"http://{HOST}:{port}" for port in ours.recv()], ours)
    finally:
        process.kill()
        process.join()


# In the process of the servers.


def serve(said: Speech, replies: float, pipe: Connection) -> None:
    """Send the ports, and serve until the process is killed."""
    counter = ReplyCounter(replies, pipe)

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(lambda: Counted(said, counter), HOST, 0) for _ in range(SERVERS)]
        pipe.send([server.sockets[0].getsockname()[1] for server in servers])
        await asyncio.Event().wait()

    asyncio.run(listen())


class ReplyCounter:
    """Counts the replies of all servers, and sends the times of the first and of the last."""

    def __init__(self, most: float, times: Connection) -> None:
        self._most = most
        self._times = times
        self._asked = 0

    def may_reply(self) -> bool:
        """Whether one more reply may be sent."""
        self._asked += 1
        if self._asked in (1, self._most):
            self._times.send(time.monotonic())
        return self._asked <= self._most


class StandIn(asyncio.Protocol):
    """One connection: requests one after the other, each answered as soon as it is complete."""

    def __init__(self, said: Speech) -> None:
        self._probe = json.dumps({"tokens": said.probe})
        self._completion = completion(said)
        self._received = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(HEADERS_END)) >= 0:
            head = self._received[:end].decode("latin-1").lower()
            length = int((head + "\r\ncontent-length: 0\r\n").split("content-length:")[1].split("\r\n")[0])
            start = end + len(HEADERS_END)
            if len(self._received) < start + length:
                return
            body = bytes(self._received[start : start + length])
            del self._received[: start + length]
            self.answer(head.split(" ", 2)[1].partition("?")[0], body)

    def answer(self, path: str, body: bytes) -> None:  # noqa: ARG002
        kind, content = "application/json", self._probe
        if path == "/completion":
            kind, content = "text/event-stream", self._completion
        elif path in ANSWERS:
            content = json.dumps(ANSWERS[path])
        data = content.encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
        self._transport.write(head.encode() + data)


class Counted(StandIn):
    """A connection whose completions are counted."""

    def __init__(self, said: Speech, counter: ReplyCounter) -> None:
        super().__init__(said)
        self._counter = counter

    def answer(self, path: str, body: bytes) -> None:
        if path != "/completion" or self._counter.may_reply():
            super().answer(path, body)


ANSWERS: dict[str, Any] = {
    "/v1/models": {"data": [{"id": "stand-in.gguf", "owned_by": "llamacpp", "meta": {"size": 1}}]},
    "/props": {
        "default_generation_settings": {"n_ctx": CONTEXT},
        "total_slots": SLOTS,
        "model_path": "/models/stand-in.gguf",
        "build_info": "stand-in",
    },
    "/slots": [],
}


def completion(said: Speech) -> str:
    """A reply as llama-server streams it."""
    *tokens, _ = said.tokens
    words = [said.text[at * len(said.text) // len(tokens) :][:1] for at in range(len(tokens))]
    events: list[dict[str, Any]] = [
        {"index": 0, "content": word, "tokens": [token], "stop": False, "tokens_predicted": count}
        for count, (token, word) in enumerate(zip(tokens, words, strict=True), 1)
    ]
    timings = {"cache_n": 0, "prompt_n": 100, "prompt_ms": 12.345, "predicted_n": len(said.tokens)}
    last = {"index": 0, "content": "", "tokens": [], "stop": True, "stop_type": "eos"}
    counts = {"tokens_predicted": len(said.tokens), "tokens_evaluated": 100}
    events.append({**last, **counts, "timings": {**timings, "predicted_ms": 3456.789}})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


if __name__ == "__main__":
    main()
