"""Read text from files and standard input, up to a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cerebrum_cli.core.errors import CerebrumError, PromptTooLong, UsageError
from cerebrum_cli.core.files import read_at_most
from cerebrum_cli.core.text import format_size

MAX_PROMPT_BYTES = 64_000_000  # of a file or of standard input: more than any context holds


class Readable(Protocol):
    def read(self, size: int, /) -> bytes:
        """Read to the end, but no more than `size` bytes."""


def read_prompt(path: Path) -> str:
    """Read text of a prompt. Raises PromptTooLong, and UsageError if it cannot be read or is not UTF-8."""
    return read_text(path, MAX_PROMPT_BYTES, PromptTooLong)


def read_piped(piped: Readable) -> str:
    """Read text of a prompt from standard input. Raises PromptTooLong, and UsageError if it is not UTF-8."""
    data = piped.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise too_large("standard input", MAX_PROMPT_BYTES, PromptTooLong)
    return decode_text(data, "standard input")


def read_text(path: Path, limit: int, error_type: type[CerebrumError] = UsageError) -> str:
    """Read a text file. Raises UsageError if it cannot be read or is not UTF-8, and `error_type` if it is larger."""
    try:
        data = read_at_most(path, limit)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", "check the path") from error
    if data is None:
        raise too_large(str(path), limit, error_type)
    return decode_text(data, str(path))


def too_large(name: str, limit: int, error_type: type[CerebrumError] = UsageError) -> CerebrumError:
    return error_type(f"{name} is larger than {format_size(limit)}", "shorten it, or split it")


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8 without a byte order mark. Raises UsageError."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})", "convert it to UTF-8, or omit it") from error
