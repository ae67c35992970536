"""Read the files of a prompt: those that are named, and the text files that directories and patterns lead to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from cerebrum_cli.core.errors import PromptTooLong, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.text import format_names, format_size, well_formed
from cerebrum_cli.inference.search import FileSearch, Skipped, search_of
from cerebrum_cli.inference.text import MAX_PROMPT_BYTES, read_prompt

STANDARD_INPUT = Path("-")  # to other programs
MAX_FOUND_BYTES = 1_000_000  # of a file that was not named itself: larger ones are data, and fill most contexts
TOO_LARGE = f"over {format_size(MAX_FOUND_BYTES)}"


def read_prompt_files(paths: Sequence[Path], on_notice: Callable[[NoticeEvent], None]) -> list[tuple[str, str]]:
    """Read files as names and texts, in the given order; those of a directory or a pattern are sorted.

    A directory or pattern adds each file once, and only text; a notice counts the others. Raises UsageError if a named
    file cannot be read, or a directory or pattern leads to no text file; PromptTooLong for more than a prompt can hold.
    """
    searches = [search_of(path) for path in paths]
    seen = {os.path.realpath(path) for path, search in zip(paths, searches, strict=True) if search is None}
    files: list[tuple[str, str]] = []
    skipped: list[Skipped] = []
    for path, search in zip(paths, searches, strict=True):
        if search is None:
            if path == STANDARD_INPUT:
                raise UsageError("- is not a file", "piped text is added to the prompt without -f")
            files.append((well_formed(str(path)), read_prompt(path)))
            continue
        left_out: list[Skipped] = []
        found = {os.path.realpath(each): each for each in find_files(path, search, left_out)}
        texts = list(read_found(path, (each for real, each in found.items() if real not in seen), left_out))
        if not texts and seen.isdisjoint(found):
            raise no_files(path, left_out)
        seen.update(found)
        files += texts
        skipped += left_out
    if skipped:
        on_notice(skipped_notice(skipped))
    return files


def find_files(path: Path, search: FileSearch, skipped: list[Skipped]) -> list[Path]:
    """Find the files of a directory or a pattern. Raises UsageError if its directory cannot be read."""
    try:
        return search.find(skipped)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", "check the path") from error


def read_found(source: Path, paths: Iterable[Path], skipped: list[Skipped]) -> Iterator[tuple[str, str]]:
    """Yield the files that are text, as names and texts, and add the others to `skipped`. Raises PromptTooLong."""
    size = 0
    for path in map(shorten, paths):
        data, reason = read_small_text(path)
        if data is None:
            skipped.append(Skipped(path, reason))
            continue
        size += len(data)
        if size > MAX_PROMPT_BYTES:
            raise PromptTooLong(
                f"the files of {source} are larger than {format_size(MAX_PROMPT_BYTES)} in all", "name fewer"
            )
        yield well_formed(str(path)), data.removeprefix("\ufeff")


def read_small_text(path: Path) -> tuple[str | None, str]:
    """Text of a file, or None and why it is left out."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FOUND_BYTES + 1)
    except OSError as error:
        return None, error.strerror or "unreadable"
    if b"\0" in data:
        return None, "binary"
    if len(data) > MAX_FOUND_BYTES:
        return None, TOO_LARGE
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError:
        return None, "binary"


def shorten(path: Path) -> Path:
    """A path relative to the working directory, if it is below that."""
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


def no_files(path: Path, skipped: Sequence[Skipped]) -> UsageError:
    hint = skipped_notice(skipped).message if skipped else "hidden files and those in .gitignore are left out"
    return UsageError(f"{path}: no text files found", hint)


def skipped_notice(skipped: Sequence[Skipped]) -> NoticeEvent:
    names = format_names([f"{well_formed(str(each.path))} ({each.reason})" for each in skipped])
    hint = "to include a large file, name it" if any(each.reason == TOO_LARGE for each in skipped) else ""
    return NoticeEvent(f"{len(skipped)} file{'' if len(skipped) == 1 else 's'} skipped: {names}", hint)
