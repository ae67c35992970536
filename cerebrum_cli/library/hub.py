"""The Hugging Face Hub through huggingface_hub, which only this module imports: listings, searches, files, errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from cerebrum_cli.core.environment import environment, named_proxy
from cerebrum_cli.core.errors import CerebrumError, ConfigError, ModelNotFound, PullError
from cerebrum_cli.core.files import Paths, exists
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.version import __version__
from cerebrum_cli.library.cache import COMMIT, Cache, CachePath
from cerebrum_cli.library.reference import MAIN, REPO_ID, RepositoryKind, is_safe_path
from cerebrum_cli.library.registry import SHA256

if TYPE_CHECKING:
    from types import ModuleType

    import httpx2

TIMEOUT_S = 3.0  # of each stage of a request that only asks whether the Hub can be reached

_WAIT = re.compile(r"(?:^|r=0;t=)(\d+)")  # seconds, in `Retry-After: 55` or `RateLimit: "api";r=0;t=55`
_SEARCH_FIELDS = ("downloads", "gated", "lastModified", "tags")
_LIBRARY_NAME = "cerebrum"  # for the Hub's statistics
_LATER = "try again later"
_LOG_IN = "run hf auth login, or set HF_TOKEN"
_CHECK_NETWORK = (
    "check the network, the proxy settings, SSL_CERT_FILE and HF_ENDPOINT; "
    "these need no Hub: cerebrum pull ./model.gguf, cerebrum pull starter"
)


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
    digest: str


@frozen
class Listing:
    """Files of a model or a dataset in one commit; `revision` is what was requested."""

    repo_id: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]
    kind: RepositoryKind = "model"

    def file(self, name: str) -> HubFile:
        for file in self.files:
            if file.name == name:
                return file
        raise ModelNotFound(f"{self.repo_id} lacks {name}, a part of its model", "see its page on the Hub")

    def place(self, cache: Cache, file: HubFile) -> CachePath:
        return CachePath(cache.repository_directory(self.repo_id), self.commit, file.name, file.digest)


def cache_directory() -> Path:
    return Path(_constants().HF_HUB_CACHE).absolute()


def is_offline() -> bool:
    return bool(_constants().is_offline_mode())


def token_location() -> str | None:
    """Where the user's token is: in a variable or a file; None without one."""
    if environment("HF_TOKEN"):
        return "HF_TOKEN"
    path = str(_constants().HF_TOKEN_PATH)
    return path if exists(path) else None


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
    problem = unreachable()
    if problem:
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True
    return problem


def _constants() -> ModuleType:
    """Values that huggingface_hub reads from the environment. Raises ConfigError for invalid ones."""
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise ConfigError(f"invalid HF_ environment variable: {error}", "correct it, or unset it") from error
    return constants


def list_repository(repo_id: str, revision: str | None = None, kind: RepositoryKind = "model") -> Listing:
    """Request the files of a model or a dataset; the default revision is `main`.

    Raises ModelNotFound for an unknown repository or revision, HubError for other failures.
    """
    revision = revision or MAIN
    with _translated(repo_id, kind) as timeout:
        from huggingface_hub import HfApi

        api = HfApi(library_name=_LIBRARY_NAME, library_version=__version__)
        request = api.model_info if kind == "model" else api.dataset_info
        info = request(repo_id, revision=revision, files_metadata=True, timeout=timeout)
        files = []
        has_verifiable = has_others = False  # among files that matter
        for file in info.siblings or ():
            is_weights = file.rfilename.lower().endswith((".gguf", ".safetensors"))
            digest = (file.lfs.sha256 if file.lfs else file.blob_id) or ""
            is_digest = SHA256.fullmatch(digest) or (None if is_weights else COMMIT.fullmatch(digest))
            if not is_safe_path(file.rfilename):
                continue
            is_verifiable = is_digest is not None and file.size is not None
            if is_verifiable:
                files.append(HubFile(file.rfilename, file.size or 0, digest))
            if is_weights or kind == "dataset":
                has_verifiable |= is_verifiable
                has_others |= not is_verifiable
        commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise _not_a_hub()
    if has_others and not has_verifiable:
        problem = f"{_endpoint()} lists the files of {repo_id} without sizes and digests, so none can be verified"
        raise HubError(problem, "unset HF_ENDPOINT, or download a file yourself, then: cerebrum pull PATH")
    return Listing(repo_id, revision, commit, tuple(files), kind)


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
    with _translated("cerebrum search") as timeout:
        from huggingface_hub import get_session
        from huggingface_hub.utils._http import hf_raise_for_status

        page = f"{_endpoint()}/api/models?{urlencode(query, doseq=True)}"
        response = get_session().get(page, headers=_request_headers(), timeout=timeout)
        hf_raise_for_status(response)
        return tuple(_found_repository(item) for item in response.json() if REPO_ID.fullmatch(item["id"]))


def _request_headers() -> dict[str, str]:
    from huggingface_hub.utils._headers import build_hf_headers

    return build_hf_headers(library_name=_LIBRARY_NAME, library_version=__version__)


def _found_repository(item: JsonObject) -> FoundRepository:
    license_name = None
    for tag in item.get("tags") or ():
        if tag.startswith("license:"):
            license_name = tag.removeprefix("license:")
            break
    return FoundRepository(
        repo_id=item["id"],
        downloads=int(item.get("downloads") or 0),
        updated=(item.get("lastModified") or "")[:10],
        license=license_name,
        gated=bool(item.get("gated")),
    )


@contextmanager
def open_file(listing: Listing, name: str, start: int, end: int | None) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open a file of a listing from byte `start` up to `end` or its end. Raises the errors of `list_repository`.

    Yields where the bytes begin, which is 0 for a server without range support, and the bytes as they arrive.
    """
    subject = f"{listing.repo_id}/{name}"
    with ExitStack() as stack:
        with _translated(subject, listing.kind) as timeout:
            from huggingface_hub import get_session, hf_hub_url
            from huggingface_hub.utils._http import hf_raise_for_status

            headers = _request_headers() | {"Accept-Encoding": "identity"}
            if start or end is not None:
                headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            url = hf_hub_url(listing.repo_id, name, repo_type=listing.kind, revision=listing.commit)
            response = stack.enter_context(get_session().stream("GET", url, headers=headers, timeout=timeout))
            hf_raise_for_status(response)

        def chunks() -> Iterator[bytes]:
            with _translated(subject, listing.kind):
                yield from response.iter_raw()

        is_part = response.status_code == 206  # otherwise the server ignores ranges
        yield start if is_part else 0, chunks()


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


def _not_a_hub() -> HubError:
    return HubError(
        f"unexpected response from {_endpoint()}: not a Hugging Face Hub",
        "check the network, and HF_ENDPOINT if it is set",
    )


@contextmanager
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
        hint = "unset it, or use an installed model (cerebrum list)"
        raise HubError(f"{subject}: HF_HUB_OFFLINE is set", hint) from error
    except (HFValidationError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise HubError(f"{subject}: {error}", "check the reference, and HF_ENDPOINT if it is set") from error
    except httpx2.TransportError as error:
        raise _connection_error(error) from error
    except UnicodeEncodeError as error:
        raise HubError(f"invalid characters in the token from {token_location()}", _LOG_IN) from error
    except (ImportError, OSError) as error:  # no library for a proxy; an unreadable token or certificate
        problem = f"cannot use the network: {error}"
        raise HubError(problem, "check the proxy, the token and SSL_CERT_FILE") from error
    except (httpx2.RequestError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_a_hub() from error


def _response_error(subject: str, kind: RepositoryKind, response: httpx2.Response) -> CerebrumError:
    """Error for an HTTP error response; `subject` begins with the id of the repository."""
    status = response.status_code
    code = response.headers.get("X-Error-Code")
    repo_id = "/".join(subject.split("/")[:2])
    page = f"{_endpoint()}/{repo_id}"
    if kind == "dataset":
        page = f"{_endpoint()}/datasets/{repo_id}"
    if code == "RevisionNotFound":
        return ModelNotFound(f"{repo_id} has no such revision", f"see its branches at {page}/tree/main")
    # The Hub redirects requests for files to its storage, whose URLs are valid for an hour, and renamed repositories.
    is_from_storage = bool(response.history) and response.url.netloc != response.history[0].url.netloc
    if is_from_storage and status in (401, 403, 404):
        return HubError(f"the Hub's storage rejected the download URL ({status})", _LATER, retries=2)
    if code == "GatedRepo" or status in (401, 403, 404):
        return _access_error(subject, repo_id, page, response)
    retries = 5 if status in (408, 429) or status >= 500 else 0
    problem = f"the Hub responded {status} {response.reason_phrase}"
    return HubError(problem, _LATER, retries, _requested_wait(response))


def _requested_wait(response: httpx2.Response) -> float | None:
    """Seconds that the Hub asks to wait before a retry; None if it does not ask."""
    limit = _WAIT.search(f"{response.headers.get('Retry-After')} {response.headers.get('RateLimit')}")
    return float(limit[1]) if limit else None


def _access_error(subject: str, repo_id: str, page: str, response: httpx2.Response) -> CerebrumError:
    """Error for a repository that needs a token, or another one, or does not exist."""
    message = response.headers.get("X-Error-Message", "")
    if response.headers.get("X-Error-Code") == "GatedRepo":
        hint = f"accept them at {page}, then {_LOG_IN}"
        return HubError(f"{repo_id} is gated: you must accept its terms first", hint)
    if response.status_code == 403:
        hint = "use a token with access: set HF_TOKEN"
        return HubError(f"the Hub denied access to {subject}: {message or 'forbidden'}", hint)
    if response.status_code == 401 and "credentials in Authorization" in message:
        return HubError(f"the Hub rejected the token in {token_location()}", _LOG_IN)
    hint = f"check the spelling; for a private repository {_LOG_IN}"
    return ModelNotFound(f"{repo_id}: no such repository on the Hub, or it is private", hint)


def _connection_error(error: httpx2.TransportError) -> HubError:
    import socket
    import ssl

    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    known = {  # the problem and the number of retries; the first match wins
        socket.gaierror: ("cannot resolve the host name", 1),
        ssl.SSLError: ("cannot verify its certificate", 0),
        TimeoutError: ("timed out", 5),
        ConnectionRefusedError: ("connection refused", 1),
        Exception: ("connection lost", 5),
    }
    problem, retries = next(known[kind] for kind in known if any(isinstance(cause, kind) for cause in causes))
    url = error.request.url
    host = url.netloc.decode("ascii", "replace")
    if proxy := named_proxy(url.scheme, url.host):
        host += f" via proxy {proxy.rpartition('//')[2].rpartition('@')[2]}"
    return HubError(f"{host}: {problem}", _CHECK_NETWORK, retries)


def _endpoint() -> str:
    return environment("HF_ENDPOINT") or "https://huggingface.co"
