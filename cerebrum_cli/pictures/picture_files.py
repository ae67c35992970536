"""Pictures in files: read for a question, and again whenever it is sent."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import is_file, read_beginning, readable
from cerebrum_cli.core.pictures import Picture
from cerebrum_cli.core.text import format_size, truncate, well_formed

MAX_PICTURE_BYTES = 20_000_000
MAX_REQUEST_BYTES = 50_000_000  # of all pictures of a conversation, which are sent with each question
BEGINNINGS = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR", re.DOTALL),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a.{0,3}[\0-\x08]", re.DOTALL),
    "image/webp": re.compile(rb"RIFF.{4}WEBPVP8", re.DOTALL),
}
TYPES = "PNG, JPEG, GIF or WebP"
ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp")  # of files that are pictures, or damaged
BEGINNING_BYTES = 64  # of a file that show what it is
SHOWN = 80  # characters of a URL
RESTORE = "restore the file, undo that question, or start a new session"


def with_files(conversation: Conversation, names: Any) -> Conversation:
    """A conversation whose question has the pictures in files: one, or a list. Raises UsageError."""
    if isinstance(names, str):
        names = [names]
    if not (isinstance(names, list) and all(isinstance(name, str) and "\0" not in name for name in names)):
        raise UsageError(f"invalid `pictures`: {names!r}", "give the path of a file, or a list of them")
    pictures = tuple(replace(_loaded(Path(name)), data=b"") for name in names)
    *before, question = conversation.messages
    question = replace(question, pictures=(*pictures, *question.pictures))
    return replace(conversation, messages=(*before, question))


def picture_in(path: Path, data: bytes) -> Picture | None:
    """The picture in a file with this content; None for one that is none. Raises UsageError for a damaged one.

    Also for one that cannot be read again, such as a pipe.
    """
    picture = picture_of(data, str(path))
    if picture is None:
        if path.suffix.lower() in ENDINGS:
            raise UsageError(f"{path} is not a {TYPES} picture", "check the file; rename it to add it as text")
        return None
    if not is_file(path):
        raise UsageError(f"{path} is not a regular file", "save the picture in a file, and name that")
    return replace(picture, path=str(path.absolute()), data=b"")


def picture_at_url(url: str, where: str) -> Picture:
    """The picture in a data: URL. Raises UsageError for another URL, since messages may be anyone's."""
    from base64 import b64decode

    head, _, data = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64")):
        shown = truncate(well_formed(url), SHOWN)
        raise UsageError(f"{where} has a picture at {shown}", "give its data: data:image/png;base64,...")
    try:
        picture = picture_of(b64decode(data, validate=True), f"the picture of {where}")
    except ValueError as error:
        raise UsageError(f"{where} has a picture that is not base64: {error}", "encode its bytes in base64") from error
    if picture is None:
        raise UsageError(f"{where} has a picture that is not {TYPES}", "convert it to one of these")
    return picture


def is_picture(path: Path) -> bool:
    try:
        return media_type(read_beginning(path, BEGINNING_BYTES)) is not None
    except OSError:
        return False


def with_data(conversation: Conversation) -> Conversation:
    """A conversation with the data of its pictures. Raises UsageError for one that is gone or has changed.

    Also if they have more than MAX_REQUEST_BYTES together.
    """
    messages, size = [], 0
    for message in conversation.messages:
        pictures = []
        for picture in map(_read_again, message.pictures):
            pictures.append(picture)
            size += len(picture.data)
            if size > MAX_REQUEST_BYTES:
                problem = f"the pictures are larger than {format_size(MAX_REQUEST_BYTES)} together"
                raise UsageError(problem, "attach fewer or smaller ones, or start a new session")
        messages.append(replace(message, pictures=tuple(pictures)))
    return replace(conversation, messages=tuple(messages))


def _loaded(path: Path) -> Picture:
    with readable(path):
        if path.stat() and not is_file(path):
            raise UsageError(f"{path} is not a regular file", "name the file of a picture")
        data = read_beginning(path, MAX_PICTURE_BYTES)
    picture = picture_of(data, str(path))
    if picture is None:
        raise UsageError(f"{path} is not a {TYPES} picture", "check the file")
    return replace(picture, path=str(path.absolute()))


def _read_again(picture: Picture) -> Picture:
    if picture.data:
        return picture
    if not picture.path:
        raise UsageError("a picture of this session came as data, which is not stored", "start a new session")
    try:
        found = _loaded(Path(picture.path))
    except UsageError as error:
        raise UsageError(f"a picture cannot be sent again: {error.message}", RESTORE) from error
    if found.digest != picture.digest:
        raise UsageError(f"{picture.path} has changed since it was attached", RESTORE)
    return found


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
