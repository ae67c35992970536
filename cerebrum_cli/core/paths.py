"""Paths of files as a user writes them."""

from __future__ import annotations

from pathlib import Path

from cerebrum_cli.core.files import expand_user


def looks_like_path(text: str) -> bool:
    """Whether a reference to a model can only be a path: it ends in .gguf, or begins as paths do."""
    return text in (".", "..") or text.lower().endswith(".gguf") or text.startswith(("/", "./", "../", "~"))


def as_path(reference: str) -> Path:
    return Path(expand_user(reference))


def as_reference(path: Path) -> str:
    """A reference to the file or folder of a path, which could be the name of a model."""
    return str(path) if looks_like_path(str(path)) else f"./{path}"


def absolute_reference(reference: str) -> str:
    """A reference that means the same in any directory: of a path, the absolute one."""
    if looks_like_path(reference):
        return str(absolute_path(as_path(reference)))
    return reference


def absolute_path(path: Path) -> Path:
    """Absolute path of a file, with links resolved in its directory only: in the Hub's cache, it links to a blob."""
    return path.parent.resolve() / path.name


def is_missing(path: Path) -> bool:
    """Whether a path certainly does not exist; an inaccessible one might."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False
