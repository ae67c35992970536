"""A relay in front of a server, which records what is asked and answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from server import HOST, LlamaServer

CHUNK = 2**16
DATA = b"data: "


class Exchange(NamedTuple):
    """The body of a request, and the objects of its reply: its parts if it was streamed, or one for each sample."""

    path: str
    body: dict[str, Any]
    reply: list[dict[str, Any]]


class Relay(ThreadingHTTPServer):
    """Passes requests on to a server; `exchanges` are the POST requests that it has answered."""

    def __init__(self, server: LlamaServer) -> None:
        super().__init__((HOST, 0), RelayHandler)
        self.port = server.port
        self.exchanges: list[Exchange] = []

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    def take_completions(self) -> list[Exchange]:
        """The requests for completions since the last call."""
        taken, self.exchanges = self.exchanges, []
        return [each for each in taken if each.path == "/completion"]


class RelayHandler(BaseHTTPRequestHandler):
    """One request: passed on, and its reply passed back as it arrives."""

    server: Relay

    def do_GET(self) -> None:
        self.pass_on(None)

    def do_POST(self) -> None:
        self.pass_on(self.rfile.read(int(self.headers["Content-Length"])))

    def pass_on(self, body: bytes | None) -> None:
        connection = HTTPConnection(HOST, self.server.port)
        connection.request(self.command, self.path, body, {"Content-Type": "application/json"} if body else {})
        response, reply = connection.getresponse(), b""
        self.send_response(response.status)
        self.send_header("Content-Type", response.headers["Content-Type"])
        self.end_headers()
        while chunk := response.read1(CHUNK):
            reply += chunk
            self.wfile.write(chunk)
        connection.close()
        if body:
            self.server.exchanges.append(Exchange(self.path, json.loads(body), parse_reply(reply)))

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def parse_reply(reply: bytes) -> list[dict[str, Any]]:
    """The objects of a whole or a streamed reply."""
    if reply.startswith((b"{", b"[")):
        whole = json.loads(reply)
        return whole if isinstance(whole, list) else [whole]
    return [json.loads(line.removeprefix(DATA)) for line in reply.splitlines() if line.startswith(DATA + b"{")]


@contextmanager
def running_relay(server: LlamaServer) -> Iterator[Relay]:
    """Run a relay in front of a server."""
    with Relay(server) as relay:
        thread = threading.Thread(target=relay.serve_forever)
        thread.start()
        try:
            yield relay
        finally:
            relay.shutdown()
            thread.join()
