"""Peers for parallel decoding: llama-server with concurrent clients, and llama-batched-bench."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import PEER_PROGRAMS, run

HOST = "127.0.0.1"
PADDING = 256  # llama.cpp rounds a slot's context up to a multiple of it
STARTUP_TIMEOUT_S = 300.0


def time_server(model: Path, prompts: Sequence[Sequence[int]], tokens: int, threads: int, slots: int) -> float:
    """Seconds that a running llama-server takes from the first request to the last reply, with a client for each slot.

    Each prompt is one request of token ids, for exactly `tokens` tokens at temperature 0. RuntimeError if a reply has
    other token counts.
    """
    slot_context = -(-(max(map(len, prompts)) + tokens) // PADDING) * PADDING
    options = {"n_predict": tokens, "temperature": 0, "ignore_eos": True}
    bodies = [json.dumps({"prompt": list(prompt), **options}).encode() for prompt in prompts]
    with running_server(model, slot_context, threads, slots) as server, ThreadPoolExecutor(slots) as clients:
        start = time.perf_counter()
        replies = list(clients.map(lambda body: completion(server.port, body), bodies))
        seconds = time.perf_counter() - start
    for prompt, reply in zip(prompts, replies, strict=True):
        if (reply["tokens_evaluated"], reply["tokens_predicted"]) != (len(prompt), tokens):
            raise RuntimeError(f"unexpected token counts from llama-server: {json.dumps(reply)[:2000]}")
    return seconds


class LlamaServer:
    """llama-server on one port, where it can be started again; its log grows with each start."""

    def __init__(self, directory: Path, model: Path, slot_context: int, threads: int, slots: int, *options: str):
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        command = [PEER_PROGRAMS / "llama-server", "-m", model, "-np", slots, "-c", slot_context * slots, "-t", threads]
        command += ["--host", HOST, "--port", self.port, "--no-webui", *options]
        self._command = [str(part) for part in command]
        self._log = directory / f"llama-server-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it has loaded its model."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        if not wait_until_healthy(self._process, self.port):
            raise RuntimeError(f"llama-server did not start: {self.log[-2000:]}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal that ends it, if it runs."""
        if self._process:
            self._process.send_signal(number)
            self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")


@contextmanager
def running_server(model: Path, slot_context: int, threads: int, slots: int, *options: str) -> Iterator[LlamaServer]:
    """Run llama-server with further options, and yield it once it is healthy."""
    with tempfile.TemporaryDirectory() as name:
        server = LlamaServer(Path(name), model, slot_context, threads, slots, *options)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a server has loaded its model; False if it exits or takes too long."""
    deadline = time.monotonic() + STARTUP_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if send(port, "GET", "/health")[0] == 200:
                return True
        except (OSError, HTTPException):
            pass
        time.sleep(0.1)
    return False


def completion(port: int, body: bytes) -> dict[str, Any]:
    """Request one completion from the server; RuntimeError if it fails."""
    status, data = send(port, "POST", "/completion", body)
    if status != 200:
        raise RuntimeError(f"llama-server returned HTTP {status}: {data.decode(errors='replace')[:2000]}")
    reply: dict[str, Any] = json.loads(data)
    return reply


def send(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one request; return the response's status and content."""
    connection = HTTPConnection(HOST, port)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


class BatchedBenchTimes(NamedTuple):
    """Seconds that llama-batched-bench takes to evaluate the prompts and to decode all sequences."""

    prefill_s: float
    decode_s: float


def batched_bench(
    model: Path, prompt: int, tokens: int, count: int, threads: int, *, shared_prompt: bool = False
) -> BatchedBenchTimes:
    """Evaluate prompts of equal length, or a shared one, and decode `tokens` tokens of each of `count` sequences.

    Each sequence has its own KV cache, just long enough. RuntimeError if the program ran another configuration.
    """
    context = -(-(prompt + tokens) // PADDING) * PADDING * count
    command = [
        PEER_PROGRAMS / "llama-batched-bench",
        "-m",
        model,
        "-c",
        context,
        "-t",
        threads,
        "-npp",
        prompt,
        "-ntg",
        tokens,
    ]
    command += ["-npl", count, "--no-kv-unified", "--output-format", "jsonl", *(["-pps"] if shared_prompt else [])]
    output = run([str(part) for part in command]).output
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if [(each["pp"], each["tg"], each["pl"]) for each in rows] != [(prompt, tokens, count)]:
        raise RuntimeError(f"unexpected results from llama-batched-bench: {output[-2000:]}")
    return BatchedBenchTimes(rows[0]["t_pp"], rows[0]["t_tg"])
