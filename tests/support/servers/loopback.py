"""A server on a loopback port: a thread serves each connection, and stopping closes them all."""

import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread, current_thread
from typing import Any, Generic, TypeVar

LINGER_ZERO = struct.pack("ii", 1, 0)  # closing a socket so set sends RST


class Loopback(ThreadingHTTPServer):
    """One port. Stopping closes the connections and waits for their threads."""

    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.bugs: list[BaseException] = []
        self._connections: dict[Thread, socket.socket] = {}
        self._lock = Lock()
        self._accepting = Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> None:
        self._accepting.start()

    def stop(self) -> None:
        self.shutdown()
        self._accepting.join()
        self.server_close()
        with self._lock:
            connections = dict(self._connections)
        for thread, connection in connections.items():
            with suppress(OSError):  # the client may have left
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    @property
    def connections(self) -> int:
        with self._lock:
            return len(self._connections)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self._lock:
            self._connections[thread] = request
        thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                del self._connections[current_thread()]

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.bugs.append(error)


class LoopbackHandler(BaseHTTPRequestHandler):
    """One connection, on which several requests may come."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Write nothing to standard error: the servers record their requests."""

    def write_head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def hang(self, released: Event) -> None:
        """Wait until the test lets go; if the client leaves before, or the port closes, so does the connection."""
        while not released.wait(0.005):
            if is_left(self.connection):
                raise ConnectionAbortedError


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedFault:
    """What goes wrong with the next `times` requests that it is for, those let through first not counted."""

    times: int | None = 1  # None: until disarmed
    let_through: int = 0


Fault = TypeVar("Fault", bound=CountedFault)


class ArmedFault(Generic[Fault]):
    """A fault in place: how many requests it struck, and the gate at which those that hang wait."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.struck = 0
        self.released = Event()
        self._passed = 0
        self._is_disarmed = False
        self._lock = Lock()

    def strike_next(self) -> bool:
        with self._lock:
            if self._is_disarmed or self.struck == self.fault.times:
                return False
            if self._passed < self.fault.let_through:
                self._passed += 1
                return False
            self.struck += 1
            return True

    def disarm(self) -> None:
        with self._lock:
            self._is_disarmed = True


def is_left(connection: socket.socket) -> bool:
    with suppress(BlockingIOError):
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return False


def reset(connection: socket.socket) -> None:
    """Close a connection with TCP's RST: what was on its way may be lost."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    connection.close()
