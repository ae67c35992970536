"""Pictures of questions as values."""

from __future__ import annotations

import re

from cerebrum_cli.core.frozen import frozen

PICTURE_LINE = re.compile(r"^\[picture [^\n]+\]$", re.MULTILINE)  # what the text of a question has of a file


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


def still_named(pictures: Pictures, before: str, after: str) -> Pictures:
    """The pictures of a question whose text has changed, without those of files that it names no longer."""
    lines = PICTURE_LINE.findall(before)
    files = [picture for picture in pictures if picture.path]
    if len(lines) != len(files):  # the text has such lines of its own
        return pictures
    left_out = [picture for line, picture in zip(lines, files, strict=True) if line not in after]
    return tuple(picture for picture in pictures if picture not in left_out)
