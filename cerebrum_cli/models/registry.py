"""The registry: named models outside the Hugging Face cache, the default model, and known digests of files.

It is one small JSON file that several processes may change at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cerebrum_cli.core.errors import ConfigError, ModelFileError
from cerebrum_cli.core.files import atomic_write, exists, read_small_json, translate_os_errors, wait_for_lock

Source = Literal["package", "local", "hub", "merge", "ollama", "lmstudio"]

FILE = "registry.json"
_VERSION = 1
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """A registered model; the digest belongs to this size and modification time."""

    name: str
    path: Path
    size: int
    sha256: str
    mtime_ns: int
    source: Source

    @property
    def digest(self) -> Digest:
        return Digest(self.path, self.size, self.mtime_ns, self.sha256)


class Digest(NamedTuple):
    """SHA-256 of a file with this size and modification time."""

    path: Path
    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def known(cls, path: Path, sha256: str) -> Digest:
        """A digest that needs no reading, for the file as it is now."""
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns, sha256)


@dataclass(frozen=True, slots=True)
class _Content:
    models: tuple[RegistryEntry, ...] = ()
    default: str | None = None
    digests: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class Registry:
    """Registered models by name. Every call reads the file again; changes are atomic and locked."""

    directory: Path

    @property
    def default(self) -> str | None:
        return self._read().default

    def entries(self) -> tuple[RegistryEntry, ...]:
        """All models, oldest first. Raises ConfigError if registry.json is damaged."""
        return self._read().models

    def find(self, name: str) -> RegistryEntry | None:
        """The model with this name; an exact match comes before one that ignores case."""
        matches = [model for model in self._read().models if model.name.lower() == name.lower()]
        return next((model for model in matches if model.name == name), matches[0] if matches else None)

    def add(self, model: RegistryEntry) -> None:
        """Add a model, or replace the one with the same name; its digest is stored as well."""
        with self._locked_content() as content:
            models = tuple(other for other in content.models if other.name != model.name)
            self._write(_with_digest(replace(content, models=(*models, model)), model.digest))

    def remove(self, name: str) -> None:
        with self._locked_content() as content:
            self._write(replace(content, models=tuple(model for model in content.models if model.name != name)))

    def set_default(self, reference: str | None, replacing: tuple[str | None, ...] | None = None) -> None:
        """Set the default model; with `replacing` only if the current default is one of those."""
        with self._locked_content() as content:
            if content.default != reference and (replacing is None or content.default in replacing):
                self._write(replace(content, default=reference))

    def digest(self, path: Path) -> Digest | None:
        """Stored digest of a file; None if there is none or the file has changed."""
        content = self._read()
        digests = (*content.digests, *(model.digest for model in content.models))
        stored = (digest for digest in digests if digest.path == path)
        return next((digest for digest in stored if digest == Digest.known(path, digest.sha256)), None)

    def remember_digest(self, digest: Digest) -> None:
        """Store a digest, which is valid until its file changes; those of deleted unregistered files are dropped."""
        with contextlib.suppress(ConfigError), self._locked_content() as content:  # the digest can be computed again
            self._write(_with_digest(content, digest))

    def touch(self, key: str) -> None:
        """Record that a model is used now, if the directory is writable."""
        with contextlib.suppress(OSError):
            marker = self._usage_marker(key)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()

    def forget_use(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self._usage_marker(key).unlink()

    def last_used(self, key: str) -> float | None:
        """Time of a model's last use in seconds since 1970; None if it was never used."""
        try:
            return self._usage_marker(key).stat().st_mtime
        except OSError:
            return None

    def _usage_marker(self, key: str) -> Path:
        import hashlib

        return self.directory / "used" / hashlib.sha256(os.fsencode(key)).hexdigest()[:32]

    @contextlib.contextmanager
    def _locked_content(self) -> Iterator[_Content]:
        with translate_os_errors(ConfigError, self.directory / FILE):
            self.directory.mkdir(parents=True, exist_ok=True)
            with wait_for_lock(self.directory / "registry.lock", is_required=False):
                yield self._read()

    def _read(self) -> _Content:
        path = self.directory / FILE
        try:
            with translate_os_errors(ConfigError, path), contextlib.suppress(FileNotFoundError):
                return _decode(read_small_json(path))
            return _Content()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path}: damaged registry ({type(error).__name__}: {error})",
                "move it elsewhere and pull your models again; the model files are intact",
            ) from error

    def _write(self, content: _Content) -> None:
        value = {"version": _VERSION, **asdict(content), "digests": [digest._asdict() for digest in content.digests]}
        atomic_write(self.directory / FILE, json.dumps(value, indent=2, default=str).encode("ascii"))


def _with_digest(content: _Content, digest: Digest) -> _Content:
    """Add a digest to those of other files that exist, or are registered: their disk may be away."""
    registered = {model.path for model in content.models}
    others = (other for other in content.digests if other.path != digest.path)
    kept = (other for other in others if other.path in registered or exists(other.path))
    return replace(content, digests=(*kept, digest))


def hash_file(path: Path, on_progress: Callable[[int, int], None] | None = None) -> Digest:
    """Compute the digest of a file. Raises ModelFileError for an unreadable one, and if it changes meanwhile."""
    import hashlib

    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                done += count
                if on_progress:
                    on_progress(done, before.st_size)
            unchanged = _state(before) == _state(os.fstat(file.fileno())) == _state(path.stat())
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror}") from error
    if not unchanged:
        raise ModelFileError(path, "changed while it was read", "run it again when the file is complete")
    return Digest(path, before.st_size, before.st_mtime_ns, digest.hexdigest())


def _state(stat: os.stat_result) -> tuple[int, ...]:
    """Properties that change if a file is written to or replaced."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _decode(value: Any) -> _Content:
    """Parse registry.json, which only this module writes; a lookup or conversion error means that it is damaged."""
    if value["version"] != _VERSION:
        raise ValueError(f"version {value['version']!r}, not {_VERSION}")
    models = tuple(RegistryEntry(**item | {"path": Path(item["path"])}) for item in value["models"])
    digests = tuple(Digest(**item | {"path": Path(item["path"])}) for item in value["digests"])
    return _Content(models, value["default"], digests)
