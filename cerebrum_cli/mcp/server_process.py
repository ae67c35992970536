"""The process of a server, as a transport of the SDK: unlike with the SDK's own, nothing that it started stays."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import IO

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from cerebrum_cli.core.child_process import ChildProcess, ending
from cerebrum_cli.core.environment import user_environment
from cerebrum_cli.core.text import Texts, foreign_line, well_formed

MAX_MESSAGE = 2**24  # bytes
CHUNK = 2**16  # bytes
END_S = 1.0  # for a server to end after its input has, and again after a signal
POLL_S = 0.01

Received = MemoryObjectSendStream[SessionMessage | Exception]
Sent = MemoryObjectReceiveStream[SessionMessage]
Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


class ServerEnded(Exception):
    """A server has ended, or cannot be used any more; the text says how, and what it wrote last."""


@asynccontextmanager
async def process_transport(words: Texts, variables: Mapping[str, str]) -> AsyncIterator[Streams]:
    """Start a server, and yield its messages and those for it. Ctrl-C is not for it: it interrupts the waiting.

    Raises OSError if it cannot be started, and ServerEnded, in a group, once it has ended.
    """
    pipe, environment = subprocess.PIPE, {**user_environment(), **variables}
    process = ChildProcess(words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, grace_s=END_S)
    server = ServerProcess(process)
    received, messages = anyio.create_memory_object_stream[SessionMessage | Exception]()
    outgoing, sent = anyio.create_memory_object_stream[SessionMessage]()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.read_messages, received)
            tasks.start_soon(server.read_log)
            tasks.start_soon(server.write_messages, sent)
            try:
                yield messages, outgoing
            finally:
                server.is_closing = True
                messages.close()
                outgoing.close()  # which closes its input
                with anyio.CancelScope(shield=True):
                    await server.end()
                tasks.cancel_scope.cancel()
    finally:
        process.close()
        received.close()  # by a task, unless that was cancelled before it began
        sent.close()


class ServerProcess:
    """The pipes of a process."""

    def __init__(self, process: ChildProcess) -> None:
        self._process = process
        self._last_line = b""  # that is no message, on either stream
        self._log_end = anyio.Event()
        self.is_closing = False

    async def read_messages(self, received: Received) -> None:
        """Pass messages on until the output ends; other lines are those of a log."""
        async with received, _reader(self._process.stdout) as output:
            try:
                while line := await output.readline():
                    if message := message_in(line):
                        with suppress(anyio.BrokenResourceError):  # nobody waits for it any more
                            await received.send(message)
                    else:
                        self._keep(line)
            except ValueError as error:
                raise ServerEnded(f"it sent a message of more than {MAX_MESSAGE:,} bytes") from error
            if not self.is_closing:
                raise ServerEnded(await self._how_it_ended())

    async def read_log(self) -> None:
        async with _reader(self._process.stderr) as log:
            while data := await log.read(CHUNK):
                self._keep(data)
        self._log_end.set()

    def _keep(self, log: bytes) -> None:
        if lines := [line for line in log.splitlines() if line.strip()]:
            self._last_line = lines[-1]

    async def _how_it_ended(self) -> str:
        """Its exit code, and the last line that it wrote."""
        await self._ends_within(END_S)
        with anyio.move_on_after(END_S):
            await self._log_end.wait()
        code = self._process.returncode
        how = "it closed its output" if code is None else ending(code)
        written_last = foreign_line(self._last_line.decode(errors="replace"))
        return f"{how}: {written_last}" if written_last else how

    async def write_messages(self, sent: Sent) -> None:
        """Write until there are no more messages, then close the input."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, self._process.stdin)
        try:
            async with sent:
                async for message in sent:
                    if transport.is_closing():  # the server has closed it
                        return
                    text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                    transport.write(f"{text}\n".encode())
        finally:
            if not transport.is_closing():
                transport.abort()

    async def end(self) -> None:
        """Let the server end after the end of its input, and again after SIGTERM."""
        if not await self._ends_within(END_S):
            with suppress(ProcessLookupError, PermissionError):  # macOS does not permit it for a group that has ended
                os.killpg(self._process.pid, signal.SIGTERM)
            await self._ends_within(END_S)

    async def _ends_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            while self._process.poll() is None:
                await anyio.sleep(POLL_S)
        return self._process.returncode is not None


@asynccontextmanager
async def _reader(pipe: IO[bytes] | None) -> AsyncIterator[asyncio.StreamReader]:
    reader = asyncio.StreamReader(MAX_MESSAGE)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        yield reader
    finally:
        transport.close()


def message_in(line: bytes) -> SessionMessage | None:
    """The message in a line; None in anything else, such as a log."""
    try:
        if rb"\ud" in line.lower():  # half of a character, perhaps
            line = well_formed(json.dumps(json.loads(line), ensure_ascii=False)).encode()
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except (ValueError, RecursionError):
        return None
