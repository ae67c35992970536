"""Replies that no Hub sends: damaged ones, and those of other servers at its address."""

import json
from collections.abc import Sequence
from typing import Any

DIGEST, COMMIT = "1" * 64, "0" * 40
LFS = {"sha256": DIGEST, "size": 1_000_000, "pointerSize": 134}


def http(body: bytes = b"", status: int = 200, *headers: str) -> list[bytes]:
    return [head(status, f"Content-Length: {len(body)}", *headers), body]


def head(status: int, *headers: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status} Hostile", "Content-Type: application/json", *headers, "", "")).encode()


def listing(**changed: Any) -> list[bytes]:
    """A repository with one model, some keys of which are changed; `file` changes the model's."""
    file = {"rfilename": "m-Q4_K_M.gguf", "size": 1_000_000, "lfs": LFS, **changed.pop("file", {})}
    return http(json.dumps({"id": "a/b", "sha": COMMIT, "siblings": [file], **changed}).encode())


REPLIES: dict[str, Sequence[bytes]] = {
    "empty": http(),
    "not JSON": http(b"<html>Sign in</html>"),
    "null": http(b"null"),
    "list": http(b"[1, 2]"),
    "no keys": http(b"{}"),
    "no commit": listing(sha=None),
    "commit that is a path": listing(sha="../../evil"),
    "files that are numbers": listing(siblings=[1]),
    "files without names": listing(siblings=[{}]),
    "digest that is missing": listing(file={"lfs": {"size": 5}}),
    "size that is missing": listing(file={"size": None}),
    "error that is a list": http(b"[1]", 403),
    "unknown status": http(b"", 999),
    "not HTTP": [b"\x00\xff" * 5000],
    "nothing": [],
    "redirect to itself": http(b"", 302, "Location: /api/models/a/b/revision/main"),
    "redirect to a file": http(b"", 302, "Location: file:///etc/passwd"),
    "redirect to nowhere": http(b"", 302, "Location: http://[/"),
}
SEARCHES = {
    "null": b"null",
    "number": b"[1]",
    "id that is a number": b'[{"id": 1}]',
    "tags that are a number": b'[{"id": "a/b", "tags": 1}]',
    "downloads that are text": b'[{"id": "a/b", "downloads": "x"}]',
}
