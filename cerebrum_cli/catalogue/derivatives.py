"""Models that were made here of others by writing their weights in another encoding: their names, and their folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.catalogue.reference import HubReference, parse_reference
from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.files import fsync_directory, try_lock

PART_SUFFIX = ".part"
DIGEST_DIGITS = 16  # of the original's digest, in the name of a folder


class Derivative(NamedTuple):
    """What the name of a derivative says: what its original is called here, and its encoding."""

    original: str
    encoding: str

    def __str__(self) -> str:
        return f"{self.original}:{self.encoding}"

    @property
    def original_name(self) -> str:
        """What the original is called, whatever its quantisation."""
        return self.original.partition(":")[0]

    @property
    def repo_id(self) -> str | None:
        """The repository of an original that has no name of its own."""
        reference = parse_reference(self.original) if "/" in self.original else None
        return reference.repo_id if isinstance(reference, HubReference) else None

    @property
    def rebuild_command(self) -> str:
        """What makes it again."""
        return f"cerebrum tune {self.original} --reencode --apply {self.encoding}"

    @classmethod
    def parse(cls, name: str) -> Derivative:
        """Read the name of a derivative."""
        original, _, encoding = name.rpartition(":")
        return cls(original, encoding)


@dataclass(frozen=True, slots=True)
class DerivativeStore:
    """The folder of all derivatives, in which one process at a time makes them.

    <digest of the original>/<its file name>.as-<ENCODING>.gguf         .part until it is whole
    """

    directory: Path
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free

    def path(self, original: Path, digest: str, encoding: str) -> Path:
        """Return where a derivative lies."""
        return self.directory / digest[:DIGEST_DIGITS] / f"{original.stem}.as-{encoding}.gguf"

    def free_space(self) -> int:
        """Return the bytes that are free for one more."""
        return self.free_bytes(next(path for path in (self.directory, *self.directory.parents) if path.exists()))

    @contextlib.contextmanager
    def locked(self, keep: Collection[Path]) -> Iterator[None]:
        """Keep others out, and remove what a killed process has left, all but the files that are known.

        CerebrumError where another one works here, or something cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / "lock").open("ab") as lock:  # closing the file gives it back
                if not try_lock(lock.fileno()):
                    raise CerebrumError("another cerebrum tune --reencode is at work", "wait until it has ended")
                for leftover in self.directory.glob("*/*"):
                    if leftover not in keep:
                        delete_file(leftover)
                yield
        except OSError as error:
            problem = f"{error.filename or self.directory}: {error.strerror}"
            raise CerebrumError(problem, "check its permissions and free space") from error


def original_file_name(path: Path) -> str:
    """Return the file name of what a derivative was made of."""
    return f"{path.stem.rpartition('.as-')[0]}.gguf"


def commit_file(part: Path, path: Path) -> None:
    """Give a whole file its name, durably."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    fsync_directory(path.parent)


def delete_file(path: Path) -> None:
    """Remove a file, and its folder where that was the last one in it."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
