"""The registry: named models outside the Hugging Face cache, and known digests of files.

It is one small JSON file that several processes may change at the same time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cerebrum_cli.core.errors import ConfigError, ModelFileError
from cerebrum_cli.core.events import OnProgress
from cerebrum_cli.core.files import atomic_write, exists, lock_file, read_small_json, reading_model, translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import from_json
from cerebrum_cli.core.text import format_utc

Source = Literal["package", "local", "hub", "merge", "converted", "ollama"]

LATEST_NS = 2**62  # a time in 2116, which stands for later ones: some file systems have years beyond 64-bit numbers
SHA256 = re.compile(r"[0-9a-f]{64}")
USED = "used"  # directory of empty files, which are named by the `usage_key` of a model and changed when it is used
_VERSION = 1
_CHUNK = 1 << 20


@frozen
class RegistryEntry:
    """A file and its SHA-256, which belongs to this size and modification time; with a name, a registered model."""

    name: str
    path: Path
    size: int
    sha256: str
    mtime_ns: int
    source: Source = "local"

    @classmethod
    def of_file(cls, path: Path, sha256: str, name: str = "", source: Source = "local") -> RegistryEntry:
        stat = path.stat()
        return cls(name, path, stat.st_size, sha256, _mtime_ns(stat), source)

    @property
    def is_current(self) -> bool:
        stat = self.path.stat()
        return (self.size, self.mtime_ns) == (stat.st_size, _mtime_ns(stat))


@dataclass(slots=True)
class Contents:
    """What registry.json has: models, and digests of other files."""

    version: int
    models: tuple[RegistryEntry, ...]
    digests: tuple[RegistryEntry, ...]


@frozen
class Registry:
    """Registered models by name. Every call reads the file again; changes are atomic and locked."""

    directory: Path

    @property
    def path(self) -> Path:
        return self.directory / "registry.json"

    @property
    def merge_directory(self) -> Path:
        return (self.directory / "merged").resolve()  # as paths of entries are

    @property
    def conversion_directory(self) -> Path:
        return (self.directory / "converted").resolve()

    def entries(self) -> tuple[RegistryEntry, ...]:
        """All models, oldest first. Raises ConfigError if registry.json is damaged."""
        return self._read().models

    def find(self, name: str) -> RegistryEntry | None:
        """The model with this name, in any case."""
        return next((entry for entry in self.entries() if entry.name.lower() == name.lower()), None)

    def add(self, model: RegistryEntry) -> None:
        with self._changed() as contents:
            others = (other for other in contents.models if other.name != model.name)
            contents.models = (*others, model)

    def remove(self, name: str) -> None:
        with self._changed() as contents:
            contents.models = tuple(model for model in contents.models if model.name != name)

    def known_digest(self, path: Path) -> RegistryEntry | None:
        """Digest of a file, if it need not be read: stored since its last change, or the name of the Hub's blob."""
        if path.is_symlink():
            blob = path.readlink()
            if blob.parent.name == "blobs" and SHA256.fullmatch(blob.name):
                return RegistryEntry.of_file(path, blob.name)
        contents = self._read()
        entries = (*contents.models, *contents.digests)
        return next((entry for entry in entries if entry.path == path and entry.is_current), None)

    def digest(self, path: Path, on_progress: OnProgress | None = None) -> RegistryEntry:
        """Stored digest of a file, or else computed and stored. Raises ModelFileError for an unreadable file."""
        if known := self.known_digest(path):
            return known
        digest = hash_file(path, on_progress)
        self.remember_digest(digest)
        return digest

    def remember_digest(self, digest: RegistryEntry) -> None:
        """Store a digest, which is valid until its file changes; those of deleted unregistered files are dropped."""
        with suppress(ConfigError), self._changed() as contents:  # it can be computed again
            others = (other for other in contents.digests if other.path != digest.path and exists(other.path))
            contents.digests = (*others, digest)

    def last_used(self, key: str) -> str | None:
        """When a model was used, in UTC; None for never."""
        try:
            return format_utc((self.directory / USED / key).stat().st_mtime)
        except OSError:
            return None

    def touch(self, key: str) -> None:
        """Record that a model is used now, if the directory is writable."""
        with suppress(OSError):
            marker = self.directory / USED / key
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()

    @contextmanager
    def _changed(self) -> Iterator[Contents]:
        """Yield the contents, and write them as they are at the end of the block."""
        with translate_os_errors(ConfigError, self.path):
            self.directory.mkdir(parents=True, exist_ok=True)
            with lock_file(self.directory / "registry.lock", lambda: None, is_required=False):
                contents = self._read()
                yield contents
                atomic_write(self.path, json.dumps(asdict(contents), indent=2, default=str).encode("ascii"))

    def _read(self) -> Contents:
        try:
            with translate_os_errors(ConfigError, self.path), suppress(FileNotFoundError):
                members = read_small_json(self.path).items()
                contents = from_json(Contents, {key: value for key, value in members if key in Contents.__slots__})
                if contents.version != _VERSION:
                    raise ValueError(f"version {contents.version}, not {_VERSION}")
                return contents
            return Contents(_VERSION, (), ())
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.path}: damaged registry ({type(error).__name__}: {error})",
                "move it elsewhere and pull your models again; the model files are intact",
            ) from error


def hash_file(path: Path, on_progress: OnProgress | None = None) -> RegistryEntry:
    """Compute the digest of a file. Raises ModelFileError for an unreadable one, and if it changes meanwhile."""
    import hashlib

    digest = hashlib.sha256()
    done = 0
    with reading_model(path):
        before = path.stat()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if on_progress:
                    on_progress(done, before.st_size)
        after = path.stat()
    if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
        raise ModelFileError(path, "changed while it was read", "run it again when the file is complete")
    return RegistryEntry("", path, before.st_size, digest.hexdigest(), _mtime_ns(before))


def _mtime_ns(status: os.stat_result) -> int:
    return int(min(max(status.st_mtime_ns, -LATEST_NS), LATEST_NS))
