"""Pictures of questions as values."""

from __future__ import annotations

from cerebrum_cli.core.frozen import frozen


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
