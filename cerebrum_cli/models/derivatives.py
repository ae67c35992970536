"""Re-encoded copies of models (derivatives): their names and their directory."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.files import existing_parent, fsync_directory, translate_os_errors
from cerebrum_cli.core.locks import lock_file
from cerebrum_cli.models.reference import HubReference, parse_reference

PART_SUFFIX = ".part"
DIGEST_DIGITS = 16  # of the original's digest, in a directory name


class Derivative(NamedTuple):
    """Name of a derivative: the name of its original, and its encoding."""

    original: str
    encoding: str

    def __str__(self) -> str:
        return f"{self.original}:{self.encoding}"

    @property
    def original_name(self) -> str:
        """Name of the original, without its quantization."""
        return self.original.partition(":")[0]

    @property
    def repo_id(self) -> str | None:
        """Repository of the original; None if it has a name of its own."""
        reference = parse_reference(self.original) if "/" in self.original else None
        return reference.repo_id if isinstance(reference, HubReference) else None

    @property
    def rebuild_command(self) -> str:
        """Command that creates it again."""
        return f"cerebrum tune {self.original} --reencode --apply {self.encoding}"

    @classmethod
    def parse(cls, name: str) -> Derivative:
        """Parse the name of a derivative."""
        original, _, encoding = name.rpartition(":")
        return cls(original, encoding)


@dataclass(frozen=True, slots=True)
class DerivativeStore:
    """The directory of all derivatives; one process at a time may write to it.

    <digest of the original>/<its file name>.as-<ENCODING>.gguf         .part until it is complete
    """

    directory: Path
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free

    def path(self, original: Path, digest: str, encoding: str) -> Path:
        """Path of a derivative."""
        return self.directory / digest[:DIGEST_DIGITS] / f"{original.stem}.as-{encoding}.gguf"

    def free_space(self) -> int:
        """Free bytes on the directory's disk."""
        return self.free_bytes(existing_parent(self.directory))

    @contextlib.contextmanager
    def locked(self, keep: Collection[Path]) -> Iterator[None]:
        """Lock the directory and delete the files of killed processes, all but those to `keep`.

        Raises CerebrumError if another process holds the lock, or if the directory cannot be written.
        """
        busy = CerebrumError("another cerebrum tune --reencode is running", "wait until it is done")
        with translate_os_errors(CerebrumError, self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            with lock_file(self.directory / "lock", busy):
                for leftover in self.directory.glob("*/*"):
                    if leftover not in keep:
                        delete_file(leftover)
                yield


def original_file_name(path: Path) -> str:
    """File name of the original of the derivative at `path`."""
    return f"{path.stem.rpartition('.as-')[0]}.gguf"


def commit_file(part: Path, path: Path) -> None:
    """Rename a complete file to its final name, durably."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    fsync_directory(path.parent)


def delete_file(path: Path) -> None:
    """Delete a file, and its directory if that is then empty."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
