"""The Hugging Face cache, shared by all tools that use the Hub: the GGUF models in it, and the paths of a download.

    models--OWNER--REPO/blobs/DIGEST                       the bytes, once; `datasets--` likewise
    models--OWNER--REPO/snapshots/COMMIT/FILE              a link to them by file name; without links, the bytes
    models--OWNER--REPO/refs/REVISION                      the commit of a branch or tag at the last request

The cache is scanned here and not by huggingface_hub, which takes 0.1 s to import and looks at every file of every
model and data set.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.files import Paths, atomic_write, exists, expand_user, is_file, read_small, remove
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.library.reference import MAIN, Variant, is_model, variant_of, variants
from cerebrum_cli.library.registry import SHA256

RepositoryKind = Literal["model", "dataset"]
COMMIT = re.compile(r"[0-9a-f]{40}")
_MODELS = "models--"


def cache_directory() -> Path:
    """Directory of the cache, by the variables that huggingface_hub reads."""
    home = environment("HF_HOME") or f"{environment('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    chosen = environment("HF_HUB_CACHE") or environment("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(expand_user(os.path.expandvars(chosen))).absolute()


@frozen
class CachedModel:
    """A model in the cache: its repository and commit, and its files in order with their blobs."""

    repo_id: str
    commit: str
    quantization: str
    names: tuple[str, ...]
    paths: Paths
    blobs: Paths


class CachedFile(NamedTuple):
    commit: str
    name: str  # in the repository
    path: Path  # in the snapshot

    @property
    def digest(self) -> str | None:
        """The SHA-256 or git hash that its blob is named after; None on a file system without links."""
        name = _link_target(self.path).name
        if SHA256.fullmatch(name) or COMMIT.fullmatch(name):
            return name
        return None


@frozen
class CachePath:
    """Where a file of a commit is, or will be, in the directory of its repository; its digest names the blob."""

    repository: Path
    commit: str
    name: str
    digest: str

    @property
    def blob(self) -> Path:
        return self.repository / "blobs" / self.digest

    @property
    def partial(self) -> Path:
        """Path of a partial download, which has holes: huggingface_hub must not take it for the start of the file.

        `hf cache` knows this name, and that of the record, as incomplete.
        """
        return self.repository / "blobs" / f"{self.digest}.pieces.incomplete"

    @property
    def record(self) -> Path:
        """Path of the record of its bytes."""
        return self.repository / "blobs" / f"{self.digest}.record.incomplete"

    @property
    def pointer(self) -> Path:
        return self.repository / "snapshots" / self.commit / PurePosixPath(self.name)

    @property
    def lock(self) -> Path:
        """The file that huggingface_hub locks while it downloads this blob."""
        return self.repository.parent / ".locks" / self.repository.name / f"{self.digest}.lock"

    @property
    def stored(self) -> Path:
        """Path of the bytes: the blob, or the file in the snapshot on a file system without links."""
        pointer = self.pointer
        if exists(pointer) and not pointer.is_symlink() and not exists(self.blob):
            return pointer
        return self.blob

    def discard_partial(self) -> None:
        """Delete a partial download. A thread that still writes has open files, which have no names any more."""
        for path in (self.record, self.partial):
            remove(path)

    def make_directories(self) -> None:
        for path in (self.blob, self.pointer, self.lock):
            path.parent.mkdir(parents=True, exist_ok=True)

    def link(self) -> Path:
        pointer = self.pointer
        if pointer.exists() and pointer.samefile(self.stored):
            return pointer
        temporary = pointer.with_name(f".{os.getpid()}")  # shorter than any name may be
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(os.path.relpath(self.blob, pointer.parent))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            temporary = self.blob  # the file system has no links: huggingface_hub moves it, too
        temporary.replace(pointer)
        return pointer


@frozen
class Cache:
    """The cache in one directory: the repositories of one kind."""

    directory: Path
    kind: RepositoryKind = "model"

    def models(self) -> Iterator[CachedModel]:
        """Yield every complete GGUF model, newest commit of a repository first; models that commits share only once."""
        for folder in _sorted_entries(self.directory):
            unique: dict[object, CachedModel] = {}
            repo_id = _repo_id_of(folder.name)
            for snapshot in self._snapshots(repo_id) if repo_id else ():
                for variant in variants(_files(snapshot, is_model)):
                    model = self.model_from_files(repo_id, snapshot.name, variant)
                    unique.setdefault((model.names, model.blobs), model)
            yield from unique.values()

    def model_from_files(self, repo_id: str, commit: str, variant: Variant) -> CachedModel:
        snapshot = self.snapshot(repo_id, commit)
        paths = tuple(snapshot / PurePosixPath(name) for name in variant.files)
        blobs = tuple(map(_link_target, paths))
        return CachedModel(repo_id, commit, variant.quantization, variant.files, paths, blobs)

    def model_at(self, path: Path) -> CachedModel | None:
        try:
            folder, snapshots, commit, *names = path.relative_to(self.directory).parts
        except ValueError:
            return None
        repo_id = _repo_id_of(folder)
        name = "/".join(names)
        if not (repo_id and snapshots == "snapshots" and name):
            return None
        return self.model_from_files(repo_id, commit, variant_of(name))

    def find_files(self, repo_id: str, pattern: str, count: int) -> list[CachedFile]:
        """Find `count` files by the pattern of their names: in the commit of `main`, or else in the newest with all."""
        for snapshot in self._snapshots(repo_id):
            names = sorted(_files(snapshot, lambda name: fnmatchcase(name, pattern)))
            if len(names) == count:
                return [CachedFile(snapshot.name, name, snapshot / name) for name in names]
        return []

    def repository_directory(self, repo_id: str) -> Path:
        return self.directory / f"{self.kind}s--{repo_id.replace('/', '--')}"

    def snapshot(self, repo_id: str, commit: str) -> Path:
        return self.repository_directory(repo_id) / "snapshots" / commit

    def commit(self, repo_id: str, revision: str) -> str | None:
        if COMMIT.fullmatch(revision):
            return revision
        try:
            return read_small(self.repository_directory(repo_id) / "refs" / PurePosixPath(revision)).decode()
        except (OSError, UnicodeDecodeError):
            return None

    def revision(self, repo_id: str, commit: str) -> str:
        """The branch or tag that a commit was downloaded as, or the commit itself; `main` if it is or was that."""
        refs = self.repository_directory(repo_id) / "refs"
        names = [name for name in _files(refs, lambda _: True) if self.commit(repo_id, name) == commit]
        return MAIN if MAIN in names or not names else names[0]

    def write_ref(self, repo_id: str, revision: str, commit: str) -> None:
        """Record what a commit was downloaded as: a branch, a tag, or itself."""
        reference = self.repository_directory(repo_id) / "refs" / PurePosixPath(revision)
        if is_file(reference) and self.commit(repo_id, revision) == commit:
            return
        reference.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(reference, commit.encode(), mode=0o666)

    def _snapshots(self, repo_id: str) -> list[Path]:
        """Snapshots of a repository: the commit of `main` first, then newest first."""
        main = self.commit(repo_id, MAIN)
        keys = {}
        for path in _sorted_entries(self.repository_directory(repo_id) / "snapshots"):
            with suppress(OSError):  # a broken link, or a snapshot being deleted
                keys[path] = (path.name == main, path.stat().st_mtime_ns, path)
        return sorted(keys, key=keys.__getitem__, reverse=True)


def _files(snapshot: Path, is_wanted: Callable[[str], bool]) -> Iterator[str]:
    for directory, _, names in os.walk(snapshot):
        for name in names:
            path = Path(directory, name)
            relative = path.relative_to(snapshot).as_posix()
            if is_wanted(relative) and exists(path):
                yield relative


def _repo_id_of(folder: str) -> str:
    """The repository of a model in a folder of this name; empty for other folders."""
    owner, dashes, name = folder.removeprefix(_MODELS).partition("--")
    if folder.startswith(_MODELS) and dashes:
        return f"{owner}/{name}"
    return ""


def _sorted_entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _link_target(path: Path) -> Path:
    """The blob that a link points to, one step only: a blob may itself link to one that repositories share."""
    if path.is_symlink():
        return Path(os.path.normpath(path.parent / path.readlink()))
    return path
