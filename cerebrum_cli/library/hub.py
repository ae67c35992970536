"""Models and datasets on the Hugging Face Hub: their files, searches, and what is downloaded of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from cerebrum_cli.core.errors import ModelNotFound, PullError
from cerebrum_cli.core.files import Paths
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import truncate
from cerebrum_cli.library.cache import COMMIT, Cache, CachePath
from cerebrum_cli.library.hub_requests import (
    CHECK_NETWORK,
    HubError,
    constants,
    endpoint,
    not_a_hub,
    opened,
    patience_s,
    requested_json,
    translated,
)
from cerebrum_cli.library.reference import MAIN, REPO_ID, RepositoryKind, is_storable
from cerebrum_cli.library.registry import SHA256

MIN_RATE = 1000  # bytes of a file per second, after as much time as a head may take

_SEARCH_FIELDS = ("downloads", "gated", "lastModified", "tags")
_MAX_LICENSE = 40  # characters
_MAX_DOWNLOADS = 10**12


class HubFile(NamedTuple):
    """A file of a repository: its path, its size in bytes, and its SHA-256, or the git hash of a small file."""

    name: str
    size: int
    digest: str

    @property
    def is_weights(self) -> bool:
        return self.name.lower().endswith((".gguf", ".safetensors"))


@frozen
class Listing:
    """Files of a model or a dataset in one commit, by name; `revision` is the requested one.

    `left_out` counts those whose names no file system takes.
    """

    repo_id: str
    revision: str
    commit: str
    files: Mapping[str, HubFile]
    kind: RepositoryKind = "model"
    left_out: int = 0

    def file(self, name: str) -> HubFile:
        if name not in self.files:
            raise ModelNotFound(f"{self.repo_id} lacks {name}, a part of its model", "see its page on the Hub")
        return self.files[name]

    def place(self, cache: Cache, file: HubFile) -> CachePath:
        return CachePath(cache.repository_directory(self.repo_id), self.commit, file.name, file.digest)


def cache_directory() -> Path:
    return Path(constants().HF_HUB_CACHE).absolute()


def list_repository(repo_id: str, revision: str | None = None, kind: RepositoryKind = "model") -> Listing:
    """Request the files of a model or a dataset; the default revision is `main`.

    Raises ModelNotFound for an unknown repository or revision, HubError for other failures.
    """
    revision = revision or MAIN
    path = f"{kind}s/{repo_id}/revision/{quote(revision, safe='')}?blobs=true"
    with requested_json(path, repo_id, kind) as info:
        items = info.get("siblings") or ()
        files = [_listed_file(item) for item in items if is_storable(item["rfilename"])]
        left_out = len(items) - len(files)
        commit = str(info["sha"])
    if not COMMIT.fullmatch(commit):
        raise not_a_hub()
    verifiable = {file.name: file for file in files if file.digest}
    matter = {file.digest for file in files if kind == "dataset" or file.is_weights}
    if matter == {""}:
        problem = f"{endpoint()} lists the files of {repo_id} without sizes and digests, so none can be verified"
        raise HubError(problem, "unset HF_ENDPOINT, or download a file yourself, then: cerebrum pull PATH")
    return Listing(repo_id, revision, commit, verifiable, kind, left_out)


def _listed_file(item: JsonObject) -> HubFile:
    """A file of a listing; its digest is empty if it, or the size, cannot be verified."""
    size: Any = item.get("size")
    digest: Any = item["lfs"]["sha256"] if item.get("lfs") else item.get("blobId")
    file = HubFile(item["rfilename"], size, digest or "")
    is_digest = SHA256.fullmatch(file.digest) or (COMMIT.fullmatch(file.digest) and not file.is_weights)
    if is_digest and type(size) is int and 0 <= size < 2**63:
        return file
    return file._replace(digest="")


class FoundRepository(NamedTuple):
    """A GGUF repository that a search found: downloads in 30 days, and the date of its last change."""

    repo_id: str
    downloads: int
    updated: str
    license: str | None
    gated: bool


def find_repositories(limit: int, *tags: str, text: str = "") -> tuple[FoundRepository, ...]:
    """Request the GGUF repositories with tags and a text in their names, the most downloaded first. Raises HubError.

    huggingface_hub's own search waits half a minute before it reports that there is no network.
    """
    query: JsonDict = {"filter": ["gguf", *tags], "limit": limit, "sort": "downloads", "expand": _SEARCH_FIELDS}
    if text:
        query["search"] = text
    with requested_json(f"models?{urlencode(query, doseq=True)}", "cerebrum search") as items:
        found = tuple(_found_repository(item) for item in items if REPO_ID.fullmatch(item["id"]))
        return found[:limit]


def _found_repository(item: JsonObject) -> FoundRepository:
    license_name = None
    for tag in item.get("tags") or ():
        if tag.startswith("license:"):
            license_name = truncate(tag.removeprefix("license:"), _MAX_LICENSE)
            break
    return FoundRepository(
        repo_id=item["id"],
        downloads=min(int(item.get("downloads") or 0), _MAX_DOWNLOADS),
        updated=str(item.get("lastModified") or "")[:10],
        license=license_name,
        gated=bool(item.get("gated")),
    )


class FileResponse(NamedTuple):
    """Bytes of a file as they arrive: exactly those requested, or all from its start, from a server without ranges.

    A server may also send other ones.
    """

    is_exact: bool
    is_whole: bool
    chunks: Iterator[bytes]


@contextmanager
def open_file(listing: Listing, name: str, start: int, end: int | None) -> Iterator[FileResponse]:
    """Open a file of a listing from byte `start` up to `end` or its end. Raises the errors of `list_repository`."""
    from huggingface_hub import hf_hub_url

    subject = f"{listing.repo_id}/{name}"
    url = hf_hub_url(listing.repo_id, name, repo_type=listing.kind, revision=listing.commit)
    headers = {}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    with opened(url, headers, subject, listing.kind) as response:

        def chunks() -> Iterator[bytes]:
            received = 0
            begun = monotonic()
            with translated(subject):
                for chunk in response.iter_raw():
                    received += len(chunk)
                    if monotonic() - begun > patience_s() + received / MIN_RATE:
                        raise HubError(f"{subject}: fewer than {MIN_RATE} bytes per second", CHECK_NETWORK)
                    yield chunk

        is_whole = response.status_code != 206
        last = (listing.file(name).size if end is None else end) - 1
        sent = response.headers.get("Content-Range", "").rpartition("/")[0]
        is_exact = sent == f"bytes {start}-{last}" if "Range" in headers else is_whole
        yield FileResponse(is_exact, is_whole, chunks())


def delete(paths: Paths, directory: Path) -> int:
    """Delete files of the cache in a directory by their snapshot paths and return the number of freed bytes.

    Blobs that another revision uses are kept.
    """
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(directory)
    requested = {path.parent.resolve() / path.name for path in paths}
    revisions = [revision for repo in cache.repos for revision in repo.revisions]
    files = {file for revision in revisions for file in revision.files if file.file_path in requested}
    if len(files) < len(requested):
        raise PullError(f"the cache in {directory} is damaged", "inspect it with hf cache ls -vvv")
    strategy = cache.delete_files(*files)
    try:
        strategy.execute()
    except OSError as error:
        raise PullError(f"{error.filename}: {error.strerror}", "make the cache writable") from error
    return strategy.expected_freed_size
