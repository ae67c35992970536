"""Models and datasets on the Hugging Face Hub: their files, searches, and what is downloaded of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.core.errors import ModelNotFound, PullError
from cerebrum_cli.core.events import Progress
from cerebrum_cli.core.files import Paths, exists, translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import truncate
from cerebrum_cli.gguf.contents import HeaderTruncated
from cerebrum_cli.gguf.header import parse_tables
from cerebrum_cli.library.cache import COMMIT, Cache, CachePath, RepositoryKind
from cerebrum_cli.library.hub_requests import (
    HubError,
    RetryPolicy,
    endpoint,
    hub_api,
    not_a_hub,
    opened,
    shown_endpoint,
    timeout,
    translated,
)
from cerebrum_cli.library.reference import MAIN, is_repo_id, is_safe_path
from cerebrum_cli.library.registry import SHA256

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.hf_api import RepoSibling

FIRST_BYTES, MAX_BYTES = 1 << 20, 1 << 26  # of a header: vocabularies take up to 20 MB
_SEARCH_FIELDS = ("downloads", "gated", "lastModified", "tags")
_MAX_LICENSE = 40  # characters


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
    """Files of a model or a dataset in one commit, by name; `revision` is the requested one."""

    repo_id: str
    revision: str
    commit: str
    files: Mapping[str, HubFile]
    kind: RepositoryKind = "model"

    def file(self, name: str) -> HubFile:
        if name not in self.files:
            raise ModelNotFound(f"{self.repo_id} lacks {name}, a part of its model", "see its page on the Hub")
        return self.files[name]

    def place(self, cache: Cache, file: HubFile) -> CachePath:
        return CachePath(cache.repository_directory(self.repo_id), self.commit, file.name, file.digest)

    def is_stored(self, cache: Cache, names: Iterable[str]) -> bool:
        """Whether the files of these names are in the cache; names that are not listed do not count."""
        files = [self.files[name] for name in names if name in self.files]
        return all(exists(self.place(cache, file).stored) for file in files)


def list_repository(
    repo_id: str, progress: Progress, revision: str | None = None, kind: RepositoryKind = "model"
) -> Listing:
    """Request the files of a model or a dataset; the default revision is `main`.

    Raises ModelNotFound for an unknown repository or revision, HubError for other failures.
    """
    return RetryPolicy(progress).run(_list_repository, repo_id, revision or MAIN, kind)


def _list_repository(repo_id: str, revision: str, kind: RepositoryKind) -> Listing:
    api = hub_api()
    request = api.dataset_info if kind == "dataset" else api.model_info
    with translated(repo_id, kind):
        info = request(repo_id, revision=revision, timeout=timeout(), files_metadata=True)
        files = [_listed_file(sibling) for sibling in info.siblings or () if is_safe_path(sibling.rfilename)]
        commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise not_a_hub()
    verifiable = {file.name: file for file in files if file.digest}
    wanted = [file for file in files if kind == "dataset" or file.is_weights]
    if wanted and not any(file.digest for file in wanted):
        problem = f"{shown_endpoint()} lists the files of {repo_id} without sizes and digests, so none can be verified"
        raise HubError(problem, "unset HF_ENDPOINT, or download a file yourself, then: cerebrum pull PATH")
    return Listing(repo_id, revision, commit, verifiable, kind)


def _listed_file(sibling: RepoSibling) -> HubFile:
    """A file of a listing; its digest is empty if it cannot be verified."""
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id or ""
    file = HubFile(sibling.rfilename, sibling.size or 0, digest)
    is_digest = SHA256.fullmatch(digest) or (COMMIT.fullmatch(digest) and not file.is_weights)
    if is_digest and isinstance(sibling.size, int):
        return file
    return file._replace(digest="")


class FoundRepository(NamedTuple):
    """A GGUF repository that a search found: downloads in 30 days, and the date of its last change."""

    repo_id: str
    downloads: int
    updated: str
    license: str | None
    gated: bool


def find_repositories(limit: int, *tags: str, text: str | None = None) -> tuple[FoundRepository, ...]:
    """Request the GGUF repositories with tags and a text in their names, the most downloaded first. Raises HubError.

    `HfApi.list_models` would take half a minute to find that there is no network, and has no timeout.
    """
    query: JsonDict = {"filter": ["gguf", *tags], "limit": limit, "sort": "downloads", "expand": _SEARCH_FIELDS}
    with translated("cerebrum search"):
        from huggingface_hub import ModelInfo

        with opened(f"{endpoint()}/api/models", params=query | ({"search": text} if text else {})) as response:
            response.read()
        found = [ModelInfo(**item) for item in response.json()[:limit]]  # type: ignore[no-untyped-call]
        return tuple(_found_repository(model) for model in found if is_repo_id(model.id))


def _found_repository(model: ModelInfo) -> FoundRepository:
    licenses = [tag.removeprefix("license:") for tag in model.tags or () if tag.startswith("license:")]
    return FoundRepository(
        repo_id=model.id,
        downloads=int(model.downloads or 0),
        updated=str(model.last_modified or "")[:10],
        license=truncate(licenses[0], _MAX_LICENSE) if licenses else None,
        gated=bool(model.gated),
    )


class OtherBytes(HubError):
    """The server has sent other bytes than requested."""

    def __init__(self) -> None:
        hint = "try again later, or download the file yourself, then: cerebrum pull PATH"
        super().__init__("the server sent other bytes than requested", hint, retries=5)


class FileResponse(NamedTuple):
    """Bytes of a file as they arrive: from the byte asked for, or the whole file from a server without ranges."""

    is_whole: bool
    chunks: Iterator[bytes]


@contextmanager
def open_file(listing: Listing, name: str, start: int, end: int | None) -> Iterator[FileResponse]:
    """Open a file of a listing from byte `start` up to `end` or its end. A server may send more, or fewer bytes.

    Mirrors and caching proxies may send the whole file, or a range without saying which. Raises the errors of
    `list_repository`.
    """
    subject = f"{listing.repo_id}/{name}"
    headers = {"Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    with ExitStack() as stack:
        with translated(subject, listing.kind):
            from huggingface_hub import hf_hub_url

            url = hf_hub_url(listing.repo_id, name, repo_type=listing.kind, revision=listing.commit)
            response = stack.enter_context(opened(url, headers=headers))

        def chunks() -> Iterator[bytes]:
            with translated(subject, listing.kind):
                yield from response.iter_raw()

        is_whole = response.status_code != 206
        expected = f"bytes {start}-"
        if not is_whole and not (response.headers.get("Content-Range") or expected).startswith(expected):
            raise OtherBytes
        yield FileResponse(is_whole, chunks())


def header_bytes(listing: Listing, file: HubFile, progress: Progress) -> bytes:
    """Bytes of a file on the Hub up to its weights, if it has any. Raises ModelFileError, HubError."""
    return RetryPolicy(progress).run(_read_header, listing, file)


def _read_header(listing: Listing, file: HubFile) -> bytes:
    """Read the first bytes of the file, and more while the header does not end within these."""
    data = b""
    end = FIRST_BYTES
    while True:
        with open_file(listing, file.name, len(data), min(end, file.size)) as response:
            data = b"" if response.is_whole else data
            while len(data) < end and (chunk := next(response.chunks, b"")):
                data += chunk
        try:
            return data[: _header_length(Path(listing.repo_id, file.name), data, file.size)]
        except HeaderTruncated:
            if len(data) >= file.size or end >= MAX_BYTES:
                raise
        end *= 4


def _header_length(path: Path, data: bytes, size: int) -> int:
    """Bytes up to the weights of a file that begins with `data`. Raises HeaderTruncated if these are too few."""
    if path.suffix.lower() == ".gguf":
        return parse_tables(path, data, size).length
    end = size
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
    if end > len(data):
        raise HeaderTruncated(path, f"its header is too large: {end:,} bytes", "use another model")
    return end


def delete(paths: Paths, directory: Path) -> int:
    """Delete files of the cache in a directory by their snapshot paths and return the number of freed bytes.

    Files of these names with the same bytes in other commits are deleted, too.
    """
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(directory)
    requested = {path.parent.resolve() / path.name for path in paths}
    files = [file for repo in cache.repos for revision in repo.revisions for file in revision.files]
    found = {(file.blob_path, file.file_name) for file in files if file.file_path in requested}
    if len(found) < len(requested):
        raise PullError(f"the cache in {directory} is damaged", "inspect it with hf cache ls -vvv")
    strategy = cache.delete_files(*(file for file in files if (file.blob_path, file.file_name) in found))
    with translate_os_errors(PullError, directory):
        strategy.execute()
    return strategy.expected_freed_size
