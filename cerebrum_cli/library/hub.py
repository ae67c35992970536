"""The Hugging Face Hub through huggingface_hub, which only this module imports: listings, searches, files, errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from cerebrum_cli.core.environment import environment, forget_empty_variable, named_proxy
from cerebrum_cli.core.errors import CerebrumError, ConfigError, ModelNotFound, PullError
from cerebrum_cli.core.files import read_small
from cerebrum_cli.core.version import __version__
from cerebrum_cli.library.cache import COMMIT
from cerebrum_cli.library.reference import MAIN, REPO_ID, RepositoryKind, is_safe_path
from cerebrum_cli.library.registry import SHA256

if TYPE_CHECKING:
    from types import ModuleType

    import httpx2

TIMEOUT_S = 3.0  # of each stage of a request that only asks whether the Hub can be reached

_RATE_LIMIT = re.compile(r"\br=0\b.*?\bt=(\d+)")  # header `RateLimit: "api";r=0;t=55`: seconds to reset
_VARIABLES = ("HF_ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")  # empty counts as unset
_SEARCH_FIELDS = ("downloads", "gated", "lastModified", "tags")
_LIBRARY_NAME = "cerebrum"  # for the Hub's statistics
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class HubError(PullError):
    """The Hub did not respond as expected. `retries` is how often to retry, `wait_s` the delay it asks for."""

    def __init__(self, problem: str, hint: str, retries: int = 0, wait_s: float | None = None) -> None:
        super().__init__(problem, hint)
        self.retries = retries
        self.wait_s = wait_s


class HubFile(NamedTuple):
    """A file of a repository: its path, its size in bytes, and its SHA-256, or the git hash of a small file."""

    name: str
    size: int
    sha256: str | None
    git_hash: str | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 or git hash. Raises PullError if the Hub lists none, since the file could not be verified."""
        digest = self.sha256 or self.git_hash
        if digest is None:
            raise PullError(f"{self.name}: the Hub lists no SHA-256 for it", "choose another file")
        return digest


@dataclass(frozen=True, slots=True)
class Listing:
    """GGUF files of a model, or all files of a dataset, in one commit; `revision` is what was requested."""

    repo_id: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]
    kind: RepositoryKind = "model"

    def file(self, name: str) -> HubFile:
        return next(file for file in self.files if file.name == name)


def cache_directory() -> Path:
    return Path(_constants().HF_HUB_CACHE).absolute()


def is_offline() -> bool:
    return bool(_constants().is_offline_mode())


def token_location() -> str | None:
    """Where the user's token is stored; None without one. Uses no network, not even to renew it. Raises PullError."""
    location, text = _token_location(), environment("HF_TOKEN") or ""
    if not text:
        with contextlib.suppress(FileNotFoundError):
            text = read_small(Path(location)).decode(errors="surrogateescape")
    if not text.isascii() or len(text.split()) > 1:
        raise PullError(f"invalid characters in the token from {location}", replace_token(location))
    return location if text.strip() else None


def replace_token(location: str) -> str:
    return "set it to a valid token, or unset it" if location == "HF_TOKEN" else "run hf auth login to replace it"


def check_reachable() -> str:
    """Request the Hub without a token, for TIMEOUT_S in each stage, and return its address. Raises HubError."""
    endpoint = _endpoint()
    with _translated(endpoint):
        from huggingface_hub import get_session

        response = get_session().head(endpoint, timeout=TIMEOUT_S, headers={"Accept-Encoding": "identity"})
    if response.status_code >= 500:
        raise HubError(f"{endpoint}: server error {response.status_code}", "try again later")
    return endpoint


def unreachable() -> str:
    """Why the Hub cannot be reached, found within seconds; empty if it can."""
    try:
        check_reachable()
    except HubError as error:
        return error.message
    return ""


def offline_if_unreachable() -> str:
    """If the Hub cannot be reached, keep this process from trying, and return why; otherwise return no text."""
    if problem := unreachable():
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True
    return problem


def _constants() -> ModuleType:
    """Values that huggingface_hub reads from the environment. Raises ConfigError for invalid ones."""
    for name in _VARIABLES:
        forget_empty_variable(name)
    endpoint = _endpoint()
    try:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"HF_ENDPOINT={endpoint!r} is not a URL",
            "set HF_ENDPOINT to a URL such as https://huggingface.co, or unset it",
        ) from None
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise ConfigError(f"invalid HF_ environment variable: {error}", "correct it, or unset it") from error
    return constants


def list_repository(repo_id: str, revision: str | None = None, kind: RepositoryKind = "model") -> Listing:
    """Request the GGUF files of a model, or all files of a dataset; the default revision is `main`.

    Raises ModelNotFound for an unknown repository or revision, HubError for other failures.
    """
    with _translated(repo_id, kind) as timeout:
        from huggingface_hub import HfApi

        api = HfApi(library_name=_LIBRARY_NAME, library_version=__version__)
        request = api.model_info if kind == "model" else api.dataset_info
        info = request(repo_id, revision=revision or MAIN, files_metadata=True, timeout=timeout)
        files = tuple(
            HubFile(
                file.rfilename,
                int(file.size or 0),
                _matching(SHA256, file.lfs.sha256 if file.lfs else None),
                _matching(COMMIT, file.blob_id) if kind == "dataset" and not file.lfs else None,
            )
            for file in info.siblings or ()
            if (kind == "dataset" or file.rfilename.lower().endswith(".gguf")) and is_safe_path(file.rfilename)
        )
        commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise _not_a_hub()
    return Listing(repo_id, revision or MAIN, commit, files, kind)


class FoundRepository(NamedTuple):
    """A GGUF repository that a search found: downloads in 30 days, and the date of its last change."""

    repo_id: str
    downloads: int
    updated: str
    license: str | None
    gated: bool


def search_repositories(text: str, limit: int) -> tuple[FoundRepository, ...]:
    """Request the GGUF repositories whose names contain a text, the most downloaded first. Raises HubError.

    huggingface_hub's own search waits half a minute before it reports that there is no network.
    """
    repositories: list[FoundRepository] = []
    query = {"search": text, "filter": "gguf", "sort": "downloads", "limit": limit, "expand": _SEARCH_FIELDS}
    page = f"{_endpoint()}/api/models?{urlencode(query, doseq=True)}"
    with _translated("cerebrum search") as timeout:
        from huggingface_hub import get_session
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import hf_raise_for_status

        headers = build_hf_headers(library_name=_LIBRARY_NAME, library_version=__version__)
        while page.startswith(f"{_endpoint()}/") and len(repositories) < limit:
            response = get_session().get(page, headers=headers, timeout=timeout)
            hf_raise_for_status(response)
            repositories += [_found_repository(item) for item in response.json() if REPO_ID.fullmatch(item["id"])]
            page = response.links.get("next", {}).get("url", "")
    return tuple(repositories[:limit])


def _found_repository(item: Mapping[str, Any]) -> FoundRepository:
    licenses = (tag.removeprefix("license:") for tag in item.get("tags") or () if tag.startswith("license:"))
    return FoundRepository(
        repo_id=item["id"],
        downloads=int(item.get("downloads") or 0),
        updated=(item.get("lastModified") or "")[:10],
        license=next(licenses, None),
        gated=bool(item.get("gated")),
    )


def _matching(pattern: re.Pattern[str], digest: str | None) -> str | None:
    return digest if digest and pattern.fullmatch(digest) else None


@contextlib.contextmanager
def open_file(
    listing: Listing, name: str, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open a file of a listing from byte `start` up to `end` or its end. Raises the errors of `list_repository`.

    Yields where the bytes begin, which is 0 for a server without range support, and the bytes as they arrive.
    """
    subject = f"{listing.repo_id}/{name}"
    with contextlib.ExitStack() as stack:
        with _translated(subject, listing.kind) as timeout:
            from huggingface_hub import get_session, hf_hub_url
            from huggingface_hub.utils._headers import build_hf_headers
            from huggingface_hub.utils._http import hf_raise_for_status

            headers = build_hf_headers(library_name=_LIBRARY_NAME, library_version=__version__)
            headers["Accept-Encoding"] = "identity"
            if start or end is not None:
                headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            url = hf_hub_url(listing.repo_id, name, repo_type=listing.kind, revision=listing.commit)
            response = stack.enter_context(get_session().stream("GET", url, headers=headers, timeout=timeout))
            hf_raise_for_status(response)

        def chunks() -> Iterator[bytes]:
            with _translated(subject, listing.kind):
                yield from response.iter_raw()

        if response.status_code == 206:
            content_range = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if content_range is None or int(content_range[1]) != start:
                raise HubError("the server sent the wrong part of the file", "try again later", retries=2)
        yield start if response.status_code == 206 else 0, chunks()


def delete(paths: tuple[Path, ...], directory: Path) -> int:
    """Delete files of the cache in a directory by their snapshot paths and return the number of freed bytes.

    Blobs that another revision uses are kept; empty revisions and repositories are deleted too.
    """
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(directory)
    requested = {path.parent.resolve() / path.name for path in paths}
    revisions = [revision for repo in cache.repos for revision in repo.revisions]
    files = {file for revision in revisions for file in revision.files if file.file_path in requested}
    if len(files) < len(requested):
        raise PullError(f"the cache in {directory} is damaged", "inspect it with hf cache ls -vvv")
    incomplete = {partial.file_path.parent.parent for partial in cache.incomplete_files}
    emptied = (revision for revision in revisions if revision.files <= files)
    deletable = [revision for revision in emptied if revision.snapshot_path.parent.parent not in incomplete]
    strategy = cache.delete_files(*files)
    try:
        strategy.execute()
        scan_cache_dir(directory).delete_revisions(*(revision.commit_hash for revision in deletable)).execute()
    except OSError as error:
        raise PullError(f"{error.filename}: {error.strerror}", "make the cache writable") from error
    return strategy.expected_freed_size


def _not_a_hub() -> HubError:
    return HubError(
        f"unexpected response from {_endpoint()}: not a Hugging Face Hub",
        "check the network, and HF_ENDPOINT if it is set",
    )


@contextlib.contextmanager
def _translated(subject: str, kind: RepositoryKind = "model") -> Iterator[float]:
    """Translate the errors of requests about `subject`. Yields their time-out in seconds."""
    timeout = float(_constants().HF_HUB_DOWNLOAD_TIMEOUT)
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield timeout
    except HfHubHTTPError as error:
        raise _response_error(subject, kind, error.response) from error
    except OfflineModeIsEnabled as error:
        raise HubError(
            f"{subject}: HF_HUB_OFFLINE is set", "unset it, or use an installed model (cerebrum list)"
        ) from error
    except (HFValidationError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise HubError(f"{subject}: {error}", "check the reference, and HF_ENDPOINT if it is set") from error
    except httpx2.TransportError as error:
        raise _connection_error(error.request.url, error) from error
    except UnicodeEncodeError as error:
        location = _token_location()
        raise HubError(f"invalid characters in the token from {location}", replace_token(location)) from error
    except (ImportError, OSError) as error:  # no library for a proxy; an unreadable token or certificate
        if "socksio" in str(error):
            problem = "SOCKS proxies need the package socksio, which is not installed"
            raise HubError(problem, "install it in cerebrum's environment, or use an HTTP proxy") from error
        raise HubError(f"cannot use the network: {error}", "check the proxy, the token and SSL_CERT_FILE") from error
    except (httpx2.RequestError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_a_hub() from error


def _response_error(subject: str, kind: RepositoryKind, response: httpx2.Response) -> CerebrumError:
    """Error for an HTTP error response; `subject` begins with the id of the repository."""
    from huggingface_hub import get_token

    status, headers = response.status_code, response.headers
    location, has_token = _token_location(), get_token() is not None
    message, code = headers.get("X-Error-Message", ""), headers.get("X-Error-Code")
    repo_id, later, log_in = "/".join(subject.split("/")[:2]), "try again later", "run hf auth login, or set HF_TOKEN"
    page = f"{_endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    accept = f"{page} with the account of the token in {location}" if has_token else f"{page}, then {log_in}"
    private = "" if has_token else f"; for a private repository {log_in}"
    access = f"allow the token in {location} to read it" if has_token else "set HF_TOKEN to one with access"
    # The Hub redirects requests for files to its storage, whose URLs are valid for an hour, and renamed repositories.
    is_from_storage = bool(response.history) and response.url.netloc != response.history[0].url.netloc
    is_expired = is_from_storage and status in (401, 403, 404)
    is_rejected = status == 401 and "credentials in Authorization" in message
    unknown = f"{repo_id}: no such repository on the Hub, or it is private"
    is_down = status in (408, 429) or status >= 500
    # Retries, None for what is not found, with problem and hint; the first match wins.
    cases: tuple[tuple[bool, int | None, str, str], ...] = (
        (code == "RevisionNotFound", None, f"{repo_id} has no such revision", f"see its branches at {page}/tree/main"),
        (code == "EntryNotFound", None, f"{subject} is not in this revision", f"see its files at {page}/tree/main"),
        (is_expired, 2, f"the Hub's storage rejected the download URL ({status})", later),
        (code == "GatedRepo", 0, f"{repo_id} is gated: you must accept its terms first", f"accept them at {accept}"),
        (is_rejected, 0, f"the Hub rejected the token in {location}", replace_token(location)),
        (status in (401, 404), None, unknown, f"check the spelling{private}"),
        (status == 403, 0, f"the Hub denied access to {subject}: {message or 'forbidden'}", access),
        (status == 429, 5, "the Hub is rate-limiting requests (429)", later),
        (is_down, 5, f"the Hub reported a server error ({status})", later),
        (True, 0, f"the Hub responded {status} for {subject}", later),
    )
    retries, problem, hint = next(row[1:] for row in cases if row[0])
    if retries is None:
        return ModelNotFound(problem, hint)
    return HubError(problem, hint, retries, _retry_after_s(headers) if is_down else None)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    if limit := _RATE_LIMIT.search(headers.get("RateLimit", "")):
        return float(limit[1])
    text = headers.get("Retry-After", "").strip()
    return float(text) if text.isdecimal() else None


def _connection_error(url: httpx2.URL, error: BaseException) -> HubError:
    import socket
    import ssl

    host = url.netloc.decode("ascii", "replace")
    if proxy := named_proxy(url.scheme, url.host):
        host += f" via proxy {proxy.rpartition('//')[2].rpartition('@')[2]}"

    causes: tuple[tuple[type[BaseException], str, str, int], ...] = (  # the first match wins
        (socket.gaierror, "cannot resolve the host name", "check the network, and HF_ENDPOINT if it is set", 1),
        (ssl.SSLError, "cannot verify its certificate", "check the clock, or set SSL_CERT_FILE for a proxy", 0),
        (TimeoutError, "timed out", "check the network, or raise HF_HUB_DOWNLOAD_TIMEOUT", 5),
        (ConnectionRefusedError, "connection refused", "check the network, and HF_ENDPOINT if it is set", 1),
        (BaseException, "connection lost", "check the network", 5),
    )
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    problem, hint, retries = next(row[1:] for row in causes if any(isinstance(link, row[0]) for link in chain))
    hint = "check the proxy settings (HTTPS_PROXY, ALL_PROXY)" if proxy and "certificate" not in problem else hint
    return HubError(f"{host}: {problem}", f"{hint}, then try again", retries=retries)


def _token_location() -> str:
    return "HF_TOKEN" if environment("HF_TOKEN") else str(_constants().HF_TOKEN_PATH)


def _endpoint() -> str:
    return environment("HF_ENDPOINT") or "https://huggingface.co"
