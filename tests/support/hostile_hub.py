"""Replies of a hostile Hub, as raw HTTP in pieces, and a server that sends them, perhaps one by one."""

import gzip
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

from loopback import Loopback, LoopbackHandler

Pieces = Sequence[bytes]

DIGEST, COMMIT = "1" * 64, "0" * 40
LFS = {"sha256": DIGEST, "size": 1_000_000, "pointerSize": 134}
MEGABYTE = b" " * (1 << 20)
ENDLESS = [MEGABYTE] * 400  # all of it in memory fails a test, and does not fill the machine
CHUNKED = "Transfer-Encoding: chunked"


def http(body: bytes = b"", status: int = 200, *headers: str) -> list[bytes]:
    return [head(status, f"Content-Length: {len(body)}", *headers), body]


def head(status: int, *headers: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status} Hostile", "Content-Type: application/json", *headers, "", "")).encode()


def endless(status: int = 200, *headers: str) -> list[bytes]:
    return [head(status, *headers), *ENDLESS]


def listing(**changed: Any) -> bytes:
    """A repository with one model, some keys of which are changed; `file` changes the model's."""
    file = {"rfilename": "m-Q4_K_M.gguf", "size": 1_000_000, "lfs": LFS, **changed.pop("file", {})}
    return json.dumps({"id": "a/b", "sha": COMMIT, "siblings": [file], **changed}).encode()


def bomb(window_bits: int) -> bytes:
    """200 MB of blanks, compressed."""
    compress = zlib.compressobj(1, zlib.DEFLATED, window_bits)
    return b"".join(map(compress.compress, [MEGABYTE] * 200)) + compress.flush()


def nested(opening: bytes) -> bytes:
    return opening * 200_000


VALUES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "list": b"[1, 2]",
    "text": b'"x"',
    "NaN": b"NaN",
    "infinity": b"1e999",
    "long integer": b"1" * 6000,
    "not UTF-8": b"\xff\xfe\x00",
    "half a surrogate pair": b'{"sha": "\\ud800"}',
    "no keys": b"{}",
    "no commit": listing(sha=None),
    "commit that is a path": listing(sha="../../evil"),
    "files that are text": listing(siblings="x"),
    "files that are an object": listing(siblings={"a": 1}),
    "files that are numbers": listing(siblings=[1]),
    "files without names": listing(siblings=[{}]),
    "name that is a number": listing(file={"rfilename": 5}),
    "digest that is a number": listing(file={"lfs": {"sha256": 5}}),
    "digest that is missing": listing(file={"lfs": {"size": 5}}),
    "digest that is text": listing(file={"lfs": "x"}),
    "size that is text": listing(file={"size": "x"}),
    "size that is negative": listing(file={"size": -1}),
    "size of 2^70": listing(file={"size": 2**70}),
    "size that is infinite": listing(file={"size": 1e999}),
    "size that is true": listing(file={"size": True}),
    "size that is missing": listing(file={"size": None}),
    "nested lists": nested(b"["),
    "nested objects": nested(b'{"a":'),
    "nested commit": b'{"sha":' + nested(b"["),
    "a million lists": b"[" + b"[]," * 1_600_000 + b"[]]",
    "a million files": b'{"siblings":[' + b"{}," * 1_600_000 + b"{}]}",
}
REPLIES: dict[str, Pieces] = {
    **{name: http(value) for name, value in VALUES.items()},
    "gzip bomb": http(bomb(31), 200, "Content-Encoding: gzip"),
    "deflate bomb": http(bomb(-15), 200, "Content-Encoding: deflate"),
    "brotli": http(b"\x00\xff" * 50, 200, "Content-Encoding: br"),
    "gzip that was not requested": http(gzip.compress(listing()), 200, "Content-Encoding: gzip"),
    "endless body": endless(200, "Connection: close"),
    "endless body of an error": endless(404, "Connection: close"),
    "endless body of a server error": endless(500, "Connection: close"),
    "endless body of a redirect": endless(302, "Location: /x", "Connection: close"),
    "endless chunk": endless(200, CHUNKED),
    "nested error": http(nested(b"["), 500),
    "error that is a list": http(b"[1]", 403),
    "unknown status": http(b"", 999),
    "no content": http(b"", 204),
    "informational for ever": [b"HTTP/1.1 103 Early Hints\r\n\r\n"] * 1000,
    "negative length": [head(200, "Content-Length: -1"), b"{}"],
    "length of 30 digits": [head(200, f"Content-Length: {'9' * 30}"), b"{}"],
    "length of 5,000 digits": [head(200, f"Content-Length: {'9' * 5000}"), b"{}"],
    "many headers": http(b"{}", 200, *("X: " + "y" * 2000 for _ in range(200))),
    "long header": http(b"{}", 200, "X: " + "y" * 1_000_000),
    "not HTTP": [b"\x00\xff" * 5000],
    "nothing": [],
    "redirect to itself": http(b"", 302, "Location: /api/models/a/b/revision/main"),
    "redirect to a file": http(b"", 302, "Location: file:///etc/passwd"),
    "redirect to nowhere": http(b"", 302, "Location: http://[/"),
    "wait of 300 digits": http(b"", 429, f"Retry-After: {'9' * 300}"),
    "rate limit of 5,000 digits": http(b"", 429, f'RateLimit: "api";r=0;t={"9" * 5000}'),
}
SEARCHES: dict[str, bytes] = {
    "null": b"null",
    "number": b"[1]",
    "id that is a number": b'[{"id": 1}]',
    "tag that is a number": b'[{"id": "a/b", "tags": [1]}]',
    "tags that are a number": b'[{"id": "a/b", "tags": 1}]',
    "downloads that are text": b'[{"id": "a/b", "downloads": "x"}]',
    "infinite downloads": b'[{"id": "a/b", "downloads": 1e999}]',
    "nested": nested(b"["),
}
LATE: dict[str, Pieces] = {  # to be sent one by one
    "body": [head(200, "Content-Length: 100000"), *[b" "] * 400],
    "chunk": [head(200, CHUNKED), b"1;", *[b"x"] * 400],
    "head": [b"HTTP/1.1 200 OK\r\nX: ", *[b"x"] * 400],
    "headers": [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 400],
    "redirect": [b"HTTP/1.1 302 Found\r\n", *[b"X: y\r\n"] * 400],
}


class HostileHub(Loopback):
    """Sends `api` to requests for metadata, and `file` to those for a file, with a pause before each piece.

    `paths` are those of requests.
    """

    def __init__(self, api: Pieces, file: Pieces = (), pause_s: float = 0) -> None:
        super().__init__(_Handler)
        self.api, self.file, self.pause_s = api, file, pause_s
        self.paths: list[str] = []

    def __enter__(self) -> "HostileHub":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(LoopbackHandler):
    server: HostileHub

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.close_connection = True
        for piece in self.server.api if self.path.startswith("/api/") else self.server.file:
            time.sleep(self.server.pause_s)
            self.wfile.write(piece)
