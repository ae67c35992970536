"""Models and datasets on the Hugging Face Hub: their files, searches, and what is downloaded of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.core.errors import ModelNotFound, PullError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import Paths, exists
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import format_count, truncate
from cerebrum_cli.core.transfers import Progress
from cerebrum_cli.library.cache import COMMIT, Cache, CachePath
from cerebrum_cli.library.hub_requests import (
    HubError,
    RetryPolicy,
    endpoint,
    hub_api,
    not_a_hub,
    request_headers,
    timeout,
    translated,
)
from cerebrum_cli.library.reference import MAIN, REPO_ID, RepositoryKind, is_storable
from cerebrum_cli.library.registry import SHA256

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.hf_api import RepoSibling

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
        if not exists(cache.repository_directory(self.repo_id)):
            return False
        files = [self.files[name] for name in names if name in self.files]
        return all(exists(self.place(cache, file).stored) for file in files)


def list_repository(
    repo_id: str, progress: Progress, revision: str | None = None, kind: RepositoryKind = "model"
) -> Listing:
    """Request the files of a model or a dataset; the default revision is `main`. Reports files that are left out.

    Raises ModelNotFound for an unknown repository or revision, HubError for other failures.
    """
    return RetryPolicy(progress).run(_list_repository, repo_id, progress, revision or MAIN, kind)


def _list_repository(repo_id: str, progress: Progress, revision: str, kind: RepositoryKind) -> Listing:
    api = hub_api()
    request = api.dataset_info if kind == "dataset" else api.model_info
    with translated(repo_id, kind):
        info = request(repo_id, revision=revision, timeout=timeout(), files_metadata=True)
        siblings = [sibling for sibling in info.siblings or () if is_storable(sibling.rfilename)]
        files = [_listed_file(sibling) for sibling in siblings]
        left_out = len(info.siblings or ()) - len(files)
        commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise not_a_hub()
    verifiable = {file.name: file for file in files if file.digest}
    matter = {file.digest for file in files if kind == "dataset" or file.is_weights}
    if matter == {""}:
        problem = f"{endpoint()} lists the files of {repo_id} without sizes and digests, so none can be verified"
        raise HubError(problem, "unset HF_ENDPOINT, or download a file yourself, then: cerebrum pull PATH")
    if left_out:
        problem = f"{repo_id}: {format_count(left_out, 'file')} left out"
        progress.notice(NoticeEvent(problem, "their names cannot be stored"))
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


def find_repositories(limit: int, *tags: str, text: str = "") -> tuple[FoundRepository, ...]:
    """Request the GGUF repositories with tags and a text in their names, the most downloaded first. Raises HubError.

    `HfApi.list_models` would take half a minute to find that there is no network, and has no timeout.
    """
    query: JsonDict = {"filter": ["gguf", *tags], "limit": limit, "sort": "downloads", "expand": _SEARCH_FIELDS}
    if text:
        query["search"] = text
    with translated("cerebrum search"):
        from huggingface_hub import ModelInfo, get_session
        from huggingface_hub.utils._http import hf_raise_for_status

        address = f"{endpoint()}/api/models"
        response = get_session().get(address, params=query, headers=request_headers(), timeout=timeout())
        hf_raise_for_status(response)
        models = [ModelInfo(**item) for item in response.json()]  # type: ignore[no-untyped-call]
        return tuple(_found_repository(model) for model in models[:limit] if REPO_ID.fullmatch(model.id))


def _found_repository(model: ModelInfo) -> FoundRepository:
    licenses = [tag.removeprefix("license:") for tag in model.tags or () if tag.startswith("license:")]
    return FoundRepository(
        repo_id=model.id,
        downloads=int(model.downloads or 0),
        updated=str(model.last_modified or "")[:10],
        license=truncate(licenses[0], _MAX_LICENSE) if licenses else None,
        gated=bool(model.gated),
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
    subject = f"{listing.repo_id}/{name}"
    headers = {"Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    with translated(subject, listing.kind):
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils._http import hf_raise_for_status

        url = hf_hub_url(listing.repo_id, name, repo_type=listing.kind, revision=listing.commit)
        client = get_session()
        request = client.build_request("GET", url, headers=request_headers() | headers, timeout=timeout())
        response = client.send(request, stream=True)
        if not response.is_success:
            with closing(response):
                response.read()
                hf_raise_for_status(response)

    def chunks() -> Iterator[bytes]:
        with translated(subject, listing.kind):
            yield from response.iter_raw()

    with closing(response):
        last = (listing.file(name).size if end is None else end) - 1
        sent = response.headers.get("Content-Range", "").rpartition("/")[0]
        is_whole = response.status_code != 206
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
