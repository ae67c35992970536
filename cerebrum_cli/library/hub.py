"""The Hugging Face Hub through huggingface_hub, which only this module imports: listings, searches, files, errors.

The Hub is not trusted: its responses are limited in time and, except for files, in size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from cerebrum_cli.core.environment import environment, named_proxy, set_environment
from cerebrum_cli.core.errors import DAMAGE, CerebrumError, ConfigError, ModelNotFound, PullError
from cerebrum_cli.core.files import Paths, exists
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import format_size, truncate
from cerebrum_cli.core.version import __version__
from cerebrum_cli.library.cache import COMMIT, Cache, CachePath
from cerebrum_cli.library.reference import MAIN, REPO_ID, RepositoryKind, is_safe_path
from cerebrum_cli.library.registry import SHA256

if TYPE_CHECKING:
    from types import ModuleType

    import httpx2

TIMEOUT_S = 3.0  # of each stage of a request that only asks whether the Hub can be reached
STAGES = 3  # time-outs that the head of a response may take, and that metadata may take after it
MAX_BYTES = 5_000_000  # of metadata: a listing of 14,000 files
MIN_RATE = 1000  # bytes of a file per second, after as much time as a head may take
MAX_REDIRECTS = 10

_WAIT = re.compile(r"(?:^|r=0;t=)(\d+)")  # seconds, in `Retry-After: 55` or `RateLimit: "api";r=0;t=55`
_SEARCH_FIELDS = ("downloads", "gated", "lastModified", "tags")
_MAX_LICENSE = 40  # characters
_MAX_DOWNLOADS = 10**12
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


def cache_directory() -> Path:
    return Path(_constants().HF_HUB_CACHE).absolute()


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
        response = _within(partial(_send, "HEAD", endpoint, {}, TIMEOUT_S))
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

        set_environment("HF_HUB_OFFLINE", "1")
        constants.HF_HUB_OFFLINE = True  # it has read the variable already
    return problem


def _constants() -> ModuleType:
    """Values that huggingface_hub reads from the environment. Raises ConfigError for invalid ones."""
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise ConfigError(f"invalid HF_ environment variable: {error}", "correct it, or unset it") from error
    return constants


def _timeout_s() -> float:
    return float(_constants().HF_HUB_DOWNLOAD_TIMEOUT)


def list_repository(repo_id: str, revision: str | None = None, kind: RepositoryKind = "model") -> Listing:
    """Request the files of a model or a dataset; the default revision is `main`.

    Raises ModelNotFound for an unknown repository or revision, HubError for other failures.
    """
    revision = revision or MAIN
    path = f"{kind}s/{repo_id}/revision/{quote(revision, safe='')}?blobs=true"
    with _requested_json(path, repo_id, kind) as info:
        files = [_listed_file(item) for item in info.get("siblings") or () if is_safe_path(item["rfilename"])]
        commit = str(info["sha"])
    if not COMMIT.fullmatch(commit):
        raise _not_a_hub()
    verifiable = {file.name: file for file in files if file.digest}
    matter = {file.digest for file in files if kind == "dataset" or file.is_weights}
    if matter == {""}:
        problem = f"{_endpoint()} lists the files of {repo_id} without sizes and digests, so none can be verified"
        raise HubError(problem, "unset HF_ENDPOINT, or download a file yourself, then: cerebrum pull PATH")
    return Listing(repo_id, revision, commit, verifiable, kind)


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
    with _requested_json(f"models?{urlencode(query, doseq=True)}", "cerebrum search") as items:
        found = tuple(_found_repository(item) for item in items if REPO_ID.fullmatch(item["id"]))
        return found[:limit]


def _request_headers() -> dict[str, str]:
    """Headers like huggingface_hub's, whose own function would first request a list of agents, and trust it."""
    from huggingface_hub.utils._headers import get_token_to_send

    headers = {"User-Agent": f"{_LIBRARY_NAME}/{__version__}"}
    if token := get_token_to_send(None):
        headers["Authorization"] = f"Bearer {token}"
    return headers


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


@contextmanager
def open_file(listing: Listing, name: str, start: int, end: int | None) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open a file of a listing from byte `start` up to `end` or its end. Raises the errors of `list_repository`.

    Yields where the bytes begin, which is 0 for a server without range support, and the bytes as they arrive.
    """
    from huggingface_hub import hf_hub_url

    subject = f"{listing.repo_id}/{name}"
    url = hf_hub_url(listing.repo_id, name, repo_type=listing.kind, revision=listing.commit)
    headers = {}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    with _opened(url, headers, subject, listing.kind) as response:

        def chunks() -> Iterator[bytes]:
            size = 0
            begun = monotonic()
            with _translated(subject):
                for chunk in response.iter_raw():
                    size += len(chunk)
                    if monotonic() - begun > STAGES * _timeout_s() + size / MIN_RATE:
                        raise HubError(f"{subject}: fewer than {MIN_RATE} bytes per second", _CHECK_NETWORK)
                    yield chunk

        is_part = response.status_code == 206  # otherwise the server ignores ranges
        yield start if is_part else 0, chunks()


@contextmanager
def _requested_json(path: str, subject: str, kind: RepositoryKind = "model") -> Iterator[Any]:
    """Request a value of the Hub's API, and translate the errors of reading it: it may have any shape."""
    with _translated(subject), _opened(f"{_endpoint()}/api/{path}", {}, subject, kind) as response:
        yield json.loads(_within(partial(_content, response)))


@contextmanager
def _opened(url: str, headers: dict[str, str], subject: str, kind: RepositoryKind) -> Iterator[httpx2.Response]:
    """Open a successful response, whose content is not read yet."""
    with _translated(subject):
        headers |= _request_headers()
        response = _within(partial(_send, "GET", url, headers, _timeout_s()))
    with closing(response):
        if not response.is_success:
            raise _response_error(subject, kind, response)
        yield response


def _send(method: str, url: str, headers: dict[str, str], timeout: float) -> httpx2.Response:
    """Send a request, and follow redirects to a response whose content is not read yet."""
    from huggingface_hub import get_session

    headers["Accept-Encoding"] = "identity"  # a few compressed bytes can be gigabytes
    client = get_session()
    request = client.build_request(method, url, headers=headers, timeout=timeout)
    for _ in range(MAX_REDIRECTS):
        response = client.send(request, stream=True, follow_redirects=False)
        if response.next_request is None:
            return response
        response.close()
        request = response.next_request
    raise ValueError(f"{url} has more than {MAX_REDIRECTS} redirects")


def _content(response: httpx2.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > MAX_BYTES:
            problem = f"{response.url.host} sent more than {format_size(MAX_BYTES)} of metadata"
            raise HubError(problem, "check the reference, and HF_ENDPOINT if it is set")
    return bytes(content)


def _within(request: Callable[[], Any]) -> Any:
    """The result of a request made in a thread; HubError if it takes too long.

    Time-outs of httpx do not end a request to a server that sends a byte now and then.
    """
    from concurrent.futures import Future

    future = Future[Any]()

    def run() -> None:
        try:
            future.set_result(request())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    limit_s = STAGES * _timeout_s()
    try:
        return future.result(limit_s)
    except TimeoutError as error:
        raise HubError(f"{_endpoint()} did not respond completely within {limit_s:g} s", _CHECK_NETWORK) from error


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
def _translated(subject: str) -> Iterator[None]:
    """Translate the errors of requests about `subject`."""
    _constants()
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        hint = "unset it, or use an installed model (cerebrum list)"
        raise HubError(f"{subject}: HF_HUB_OFFLINE is set", hint) from error
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise HubError(f"{subject}: {error}", "check the reference, and HF_ENDPOINT if it is set") from error
    except httpx2.TransportError as error:
        raise _connection_error(error) from error
    except UnicodeEncodeError as error:
        raise HubError(f"invalid characters in the token from {token_location()}", _LOG_IN) from error
    except (ImportError, OSError) as error:  # no library for a proxy; an unreadable token or certificate
        problem = f"cannot use the network: {error}"
        raise HubError(problem, "check the proxy, the token and SSL_CERT_FILE") from error
    except (httpx2.RequestError, *DAMAGE) as error:
        raise _not_a_hub() from error


def _response_error(subject: str, kind: RepositoryKind, response: httpx2.Response) -> CerebrumError:
    """Error for an HTTP error response; `subject` begins with the id of the repository."""
    import httpx2

    status = response.status_code
    code = response.headers.get("X-Error-Code")
    repo_id = "/".join(subject.split("/")[:2])
    page = f"{_endpoint()}/{repo_id}"
    if kind == "dataset":
        page = f"{_endpoint()}/datasets/{repo_id}"
    if code == "RevisionNotFound":
        return ModelNotFound(f"{repo_id} has no such revision", f"see its branches at {page}/tree/main")
    # The Hub redirects requests for files to its storage, whose URLs are valid for an hour, and renamed repositories.
    is_from_storage = response.url.netloc != httpx2.URL(_endpoint()).netloc
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
