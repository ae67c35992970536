"""A connection to a server by the SDK, which a task of a background event loop holds open."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import anyio
import httpx2
from anyio.from_thread import BlockingPortal
from mcp import Client, MCPError
from mcp.client import Transport
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CONNECTION_CLOSED, Implementation, Tool

from cerebrum_cli.core.child_process import signals_deferred
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import foreign_line
from cerebrum_cli.core.version import __version__
from cerebrum_cli.mcp.server_process import ServerEnded, process_transport
from cerebrum_cli.mcp.server_table import ServerTable

NOTICE_S = 3.0  # after which a server that starts is named
CLOSE_S = 5.0  # for all that closes a connection; longer than a process takes to end
CLIENT = Implementation(name="cerebrum", version=__version__)
NO_ACCESS = (401, 403)  # HTTP
Result = TypeVar("Result")

for _name in ("mcp", "client"):  # the SDK's loggers, whose warnings would otherwise be printed
    logging.getLogger(_name).addHandler(logging.NullHandler())


class ServerFault(Exception):
    """What is wrong with a server, in words that follow its name, and a hint, which may be empty."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.hint = hint


class McpConnection:
    """A connection that is opened in the background: `wait` for it first. Methods raise ServerFault.

    Unless it `probes`, the SDK does not ask for the newest version of the protocol first.
    """

    def __init__(self, table: ServerTable, portal: BlockingPortal, probes: bool) -> None:
        self._table, self._portal, self._probes = table, portal, probes
        self._opened: Future[tuple[Client, list[Tool]]] = Future()
        self._closing = anyio.Event()
        self._task = portal.start_task_soon(self._hold_open)

    async def _hold_open(self) -> None:
        mode = "auto" if self._probes else "legacy"
        try:
            with anyio.CancelScope() as scope:
                async with Client(self._transport(), mode=mode, client_info=CLIENT, cache=None) as client:
                    self._opened.set_result((client, await listed(client)))
                    await self._closing.wait()
                    scope.deadline = anyio.current_time() + CLOSE_S
        except Exception as error:
            if not self._opened.done():
                self._opened.set_exception(error)
            raise

    def _transport(self) -> Transport:
        if self._table.url:
            return http_transport(self._table.url, self._table.headers)
        return process_transport(self._table.words, self._table.env)

    @property
    def has_ended(self) -> bool:
        return self._task.done()

    def wait(self, on_slow: Callable[[], None]) -> None:
        """Wait until the server has listed its functions; `on_slow` is called if that takes long."""
        try:
            timeout_s = self._table.timeout_s
            if timeout_s > NOTICE_S and not wait([self._opened], NOTICE_S).done:
                on_slow()
                timeout_s -= NOTICE_S
            self._result(self._opened, timeout_s)
        except BaseException:
            self._task.cancel()
            raise

    @property
    def functions(self) -> list[Tool]:
        return self._opened.result()[1]

    @property
    def server_info(self) -> JsonDict:
        """The server's own name and version."""
        info = self._opened.result()[0].server_info
        return {"name": info.name, "version": info.version} if info else {}

    def call(self, name: str, arguments: JsonObject) -> JsonDict:
        """Call a function; its result as JSON."""
        client, _ = self._opened.result()
        future = None
        try:
            with signals_deferred():  # else a call that has begun could not be cancelled
                future = self._portal.start_task_soon(client.call_tool, name, dict(arguments))
            result = self._result(future, self._table.timeout_s)
        except BaseException:  # no answer within this time, or Ctrl-C
            if future:
                future.cancel()
            raise
        content: JsonDict = result.model_dump(mode="json", by_alias=True, exclude_none=True)
        return content

    def close(self) -> None:
        """Let the event loop close the connection; whoever stops it waits for that."""
        self._portal.start_task_soon(self._close)

    async def _close(self) -> None:
        self._closing.set()

    def _result(self, future: Future[Result], timeout_s: float) -> Result:
        """Wait for what the event loop does. Raises ServerFault, and what a signal raises meanwhile."""
        try:
            error = future.exception(timeout_s)
        except TimeoutError as error:
            raise ServerFault(f"gave no answer within {self._table.timeout_s:g} s") from error
        if error is None:
            return future.result()
        cause = cause_of(error)
        if isinstance(cause, MCPError) and cause.code == CONNECTION_CLOSED:
            cause = self._why_closed() or cause
        raise fault_of(cause, self._table) from cause

    def _why_closed(self) -> BaseException | None:
        with suppress(TimeoutError):
            if error := self._task.exception(CLOSE_S):
                return cause_of(error)
        return None


async def listed(client: Client) -> list[Tool]:
    """All functions of a server, which lists them page by page."""
    functions: list[Tool] = []
    cursor = None
    while True:
        page = await client.list_tools(cursor=cursor)
        functions += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return functions


@asynccontextmanager
async def http_transport(url: str, headers: Mapping[str, str]) -> AsyncIterator[Any]:
    """The messages of a server at a URL and those for it. Raises HTTPError of httpx2, in a group."""
    timeout = httpx2.Timeout(None, connect=CLOSE_S)
    hooks = {"response": [require_access]}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout, event_hooks=hooks) as http,
        streamable_http_client(url, http_client=http) as streams,
    ):
        yield streams


async def require_access(response: httpx2.Response) -> None:
    if response.status_code in NO_ACCESS:
        response.raise_for_status()


def cause_of(error: BaseException) -> BaseException:
    """What the SDK's tasks raise in groups: the end of a server comes before its consequences."""
    if isinstance(error, BaseExceptionGroup):
        group = error.subgroup((ServerEnded, httpx2.HTTPError)) or error
        return cause_of(group.exceptions[0])
    return error


def fault_of(error: BaseException, table: ServerTable) -> ServerFault:
    match error:
        case ServerEnded():
            return ServerFault(f"ended: {error}")
        case FileNotFoundError():
            return ServerFault(
                f"cannot be started: command not found: {table.words[0]}", "install it, or correct its name"
            )
        case OSError():
            return ServerFault(f"cannot be started: {error.strerror}")
        case httpx2.HTTPStatusError():
            hint = 'set headers in its table in config.toml, such as { Authorization = "Bearer ..." }'
            return ServerFault(f"refused access: HTTP status {error.response.status_code}", hint)
        case httpx2.HTTPError():
            return ServerFault(f"cannot be reached: {foreign_line(str(error))}")
        case MCPError():
            return ServerFault(f"answered with an error: {foreign_line(error.message)}")
        case _:  # of the SDK, which checks messages
            return ServerFault(f"sent an invalid answer: {foreign_line(str(error).partition(chr(10))[0])}")
