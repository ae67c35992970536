"""Replies that no Hub sends: damaged ones, and those of other servers at its address."""

import json
from typing import Any

from cases import rows

DIGEST, COMMIT = "1" * 64, "0" * 40
LFS = {"sha256": DIGEST, "size": 1_000_000, "pointerSize": 134}


def http(body: bytes | str = b"", status: int = 200, *headers: str) -> list[bytes]:
    data = body.encode() if isinstance(body, str) else body
    return [head(status, f"Content-Length: {len(data)}", *headers), data]


def head(status: int, *headers: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status} Hostile", "Content-Type: application/json", *headers, "", "")).encode()


def listing(**changed: Any) -> str:
    """A repository with one model, some keys of which are changed; `file` changes the model's."""
    file = {"rfilename": "m-Q4_K_M.gguf", "size": 1_000_000, "lfs": LFS, **changed.pop("file", {})}
    return json.dumps({"id": "a/b", "sha": COMMIT, "siblings": [file], **changed})


REPLIES: dict[str, list[bytes]] = {
    name: http(listing(**body) if isinstance(body, dict) else body, status, *headers)
    for name, (status, headers, body) in rows("hostile_replies").items()
} | {"not HTTP": [b"\x00\xff" * 5000], "nothing": []}
