"""Pictures of questions: their types, by their first bytes, and their data."""

from __future__ import annotations

import re

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import format_size

MAX_PICTURE_BYTES = 20_000_000
BEGINNINGS = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR", re.DOTALL),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
TYPES = "PNG, JPEG, GIF or WebP"


@frozen
class Picture:
    """A picture of a question: its type, the SHA-256 digest of its bytes, and where they are.

    `path` is the absolute path of its file, whose `data` is read when the question is sent. A picture without one came
    as data.
    """

    media_type: str
    digest: str
    path: str = ""
    data: bytes = b""

    @property
    def url(self) -> str:
        """Its data as a data: URL."""
        from base64 import b64encode

        return f"data:{self.media_type};base64,{b64encode(self.data).decode()}"

    @property
    def record(self) -> dict[str, str]:
        """What a session stores of it."""
        return {"media_type": self.media_type, "digest": self.digest, "path": self.path}


Pictures = tuple[Picture, ...]


def media_type(data: bytes) -> str | None:
    """The type of a picture that begins with some bytes; None of anything else."""
    return next((name for name, beginning in BEGINNINGS.items() if beginning.match(data)), None)


def picture_of(data: bytes, name: str) -> Picture | None:
    """The picture that bytes are, if they are one. Raises UsageError for one that is too large."""
    from hashlib import sha256

    kind = media_type(data)
    if kind is None:
        return None
    if len(data) > MAX_PICTURE_BYTES:
        raise UsageError(f"{name} is larger than {format_size(MAX_PICTURE_BYTES)}", "make the picture smaller")
    return Picture(kind, sha256(data).hexdigest(), data=data)
