"""Pictures in files: read for a question, and again whenever it is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import is_file, read_beginning, readable
from cerebrum_cli.core.pictures import MAX_PICTURE_BYTES, TYPES, Picture, media_type, picture_of

ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp")  # of files that are pictures, or damaged
BEGINNING_BYTES = 64  # of a file that show what it is
RESTORE = "restore the file, undo that question, or start a new session"


def read_picture(path: Path) -> Picture:
    """The picture in a file, without its data. Raises UsageError."""
    return replace(_loaded(path), data=b"")


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


def is_picture(path: Path) -> bool:
    try:
        return media_type(read_beginning(path, BEGINNING_BYTES)) is not None
    except OSError:
        return False


def with_data(conversation: Conversation) -> Conversation:
    """A conversation with the data of its pictures. Raises UsageError for one that is gone or has changed."""
    messages = []
    for message in conversation.messages:
        messages.append(replace(message, pictures=tuple(map(_read_again, message.pictures))))
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
