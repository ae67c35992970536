"""The process of a server, and what is written to it and read from it: one loop, so that nothing waits for another."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections import deque
from contextlib import suppress

from cerebrum_cli.core.child_process import ChildProcess, ending
from cerebrum_cli.core.environment import environment_with
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import foreign_line
from cerebrum_cli.mcp.json_rpc import RpcError, answer_to, messages_in, notification, request, result_of, written
from cerebrum_cli.mcp.server_table import ServerTable

MAX_MESSAGE = 2**24  # bytes
MAX_LOG = 2**16  # bytes of a line in a log
MAX_LAST_READS = 16  # of a stream, once its server has ended: a child of it may write forever
CHUNK = 2**16  # bytes
POLL_S = 0.5  # after which a process that has ended is noticed although a child of it holds its streams
END_S = 1.0  # for a server to end after its input has, and again after a signal
READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


class ServerEnded(Exception):
    """A server has ended, or cannot be used any more; the text says how, and what it wrote last."""


class McpConnection:
    """A server that runs, and the messages between it and this process; close it.

    While an answer is awaited, requests of the server are answered, and logs are read. Ctrl-C is not for the server: it
    interrupts the waiting. Raises OSError if the server cannot be started.
    """

    def __init__(self, table: ServerTable) -> None:
        self._process = ChildProcess(
            table.words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment_with(dict(table.env)),
            grace_s=END_S,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._open = {self._output: bytearray(), self._process.stderr.fileno(): bytearray()}  # what is read, by stream
        os.set_blocking(self._input, False)
        self._unwritten = bytearray()
        self._received: deque[JsonDict] = deque()
        self._last_line = b""  # of a log
        self._count = 0  # of requests

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def request(self, method: str, params: JsonObject, timeout_s: float) -> JsonDict:
        """The result of a request. Raises RpcError, ServerEnded, and TimeoutError after cancelling the request."""
        number = self.send(method, params)
        try:
            return self.answer(number, timeout_s)
        except (RpcError, ServerEnded):
            raise
        except BaseException:  # no answer within this time, or Ctrl-C
            self._cancel(number)
            raise

    def send(self, method: str, params: JsonObject) -> int:
        """Send a request; its number."""
        self._count += 1
        self._unwritten += written(request(self._count, method, params))
        return self._count

    def notify(self, method: str, params: JsonObject) -> None:
        self._unwritten += written(notification(method, params))

    def answer(self, number: int, timeout_s: float) -> JsonDict:
        """The result of a request that was sent. Raises RpcError, ServerEnded, TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self._received:
                message = self._received.popleft()
                if "method" not in message and message.get("id") == number:
                    return result_of(message)
                if "method" in message and (answer := answer_to(message)):
                    self._unwritten += written(answer)
            if len(self._unwritten) > MAX_MESSAGE:
                raise ServerEnded(f"it left more than {MAX_MESSAGE:,} bytes unread")
            if time.monotonic() >= deadline:
                raise TimeoutError
            self._exchange(min(POLL_S, deadline - time.monotonic()))

    def _cancel(self, number: int) -> None:
        """Tell the server that nobody waits for an answer any more."""
        self.notify("notifications/cancelled", {"requestId": number})
        with suppress(ServerEnded):
            self._exchange(0.0)

    def _exchange(self, timeout_s: float) -> None:
        """Write and read what is possible, after at most this time. Raises ServerEnded."""
        poll = select.poll()
        for stream in self._open:
            poll.register(stream, READABLE)
        if self._unwritten:
            poll.register(self._input, select.POLLOUT)
        ready = poll.poll(max(0.0, timeout_s) * 1000)
        for stream, _ in ready:
            if stream == self._input:
                self._write()
            else:
                self._read(stream)
        if self._output not in self._open or (not ready and self._process.poll() is not None):
            raise ServerEnded(self._how_it_ended())

    def _write(self) -> None:
        try:
            del self._unwritten[: os.write(self._input, self._unwritten)]
        except BlockingIOError:
            pass
        except OSError:  # the end is noticed when its output ends
            self._unwritten.clear()

    def _read(self, stream: int) -> None:
        """Read from a stream, and take the lines that are complete: messages, or a log."""
        data = os.read(stream, CHUNK)
        if not data:
            self._keep_log(bytes(self._open.pop(stream)))
            return
        self._open[stream] += data
        if b"\n" in data:
            *lines, rest = bytes(self._open[stream]).split(b"\n")
            self._open[stream] = bytearray(rest)
            for line in lines:
                messages = messages_in(line) if stream == self._output and line[:1] in (b"{", b"[") else []
                self._received += messages
                if not messages:
                    self._keep_log(line)
        if stream != self._output:
            del self._open[stream][:-MAX_LOG]
        elif len(self._open[stream]) > MAX_MESSAGE:
            raise ServerEnded(f"it sent a message of more than {MAX_MESSAGE:,} bytes")

    def _keep_log(self, line: bytes) -> None:
        if not line.isspace() and line:
            self._last_line = line

    def _how_it_ended(self) -> str:
        """Its exit code, and the last line that it wrote."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(POLL_S)
        for stream in [*self._open]:  # what it wrote before its end
            os.set_blocking(stream, False)
            with suppress(BlockingIOError):
                for _ in range(MAX_LAST_READS):
                    if stream in self._open:
                        self._read(stream)
        code = self._process.poll()
        how = "it closed its output" if code is None else ending(code)
        written_last = foreign_line(self._last_line[-MAX_LOG:].decode(errors="replace"))
        return f"{how}: {written_last}" if written_last else how

    def close(self, grace_s: float = END_S) -> None:
        """Let the server end: it has this time after the end of its input, and again after SIGTERM."""
        assert self._process.stdin
        self._process.stdin.close()
        if not self._ends_within(grace_s):
            os.killpg(self._process.pid, signal.SIGTERM)
            self._ends_within(grace_s)
        self._process.close()

    def _ends_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
