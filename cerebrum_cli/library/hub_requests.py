"""Requests to the Hugging Face Hub: where it is, the user's token, and the translation of errors.

The Hub is not trusted: its responses are limited in time and, except for files, in size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.environment import environment, named_proxy, set_environment
from cerebrum_cli.core.errors import DAMAGE, CerebrumError, ConfigError, ModelNotFound, PullError
from cerebrum_cli.core.files import exists
from cerebrum_cli.core.text import format_size
from cerebrum_cli.core.version import __version__
from cerebrum_cli.library.reference import RepositoryKind

if TYPE_CHECKING:
    from types import ModuleType

    import httpx2

TIMEOUT_S = 3.0  # of each stage of a request that only asks whether the Hub can be reached
STAGES = 3  # time-outs that the head of a response may take, and that metadata may take after it
MAX_BYTES = 5_000_000  # of metadata: a listing of 14,000 files
MAX_REDIRECTS = 10

_WAIT = re.compile(r"(?:^|r=0;t=)(\d+)")  # seconds, in `Retry-After: 55` or `RateLimit: "api";r=0;t=55`
_LIBRARY_NAME = "cerebrum"  # for the Hub's statistics
_LATER = "try again later"
_LOG_IN = "run hf auth login, or set HF_TOKEN"
CHECK_NETWORK = (
    "check the network, the proxy settings, SSL_CERT_FILE and HF_ENDPOINT; "
    "these need no Hub: cerebrum pull ./model.gguf, cerebrum pull starter"
)


class HubError(PullError):
    """The Hub did not respond as expected. `retries` is how often to retry, `wait_s` the delay it asks for.

    It `is_overload` if the Hub asks for fewer requests.
    """

    def __init__(
        self, problem: str, hint: str, retries: int = 0, wait_s: float | None = None, is_overload: bool = False
    ) -> None:
        super().__init__(problem, hint)
        self.retries = retries
        self.wait_s = wait_s
        self.is_overload = is_overload


def token_location() -> str | None:
    """Where the user's token is: in a variable or a file; None without one."""
    if environment("HF_TOKEN"):
        return "HF_TOKEN"
    path = str(constants().HF_TOKEN_PATH)
    return path if exists(path) else None


def check_reachable() -> str:
    """Request the Hub without a token, for TIMEOUT_S in each stage, and return its address. Raises HubError."""
    address = endpoint()
    with translated(address):
        response = _within(partial(_send, "HEAD", address, {}, TIMEOUT_S))
    if response.status_code >= 500:
        raise HubError(f"{address}: server error {response.status_code}", "try again later")
    return address


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
        import huggingface_hub

        set_environment("HF_HUB_OFFLINE", "1")
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # it has read the variable already
    return problem


def constants() -> ModuleType:
    """Values that huggingface_hub reads from the environment. Raises ConfigError for invalid ones."""
    try:
        from huggingface_hub import constants as values
    except ValueError as error:
        raise ConfigError(f"invalid HF_ environment variable: {error}", "correct it, or unset it") from error
    return values


def _timeout_s() -> float:
    return float(constants().HF_HUB_DOWNLOAD_TIMEOUT)


def patience_s() -> float:
    """Seconds that the head of a response may take."""
    return STAGES * _timeout_s()


@contextmanager
def requested_json(path: str, subject: str, kind: RepositoryKind = "model") -> Iterator[Any]:
    """Request a value of the Hub's API, and translate the errors of reading it: it may have any shape."""
    with translated(subject), opened(f"{endpoint()}/api/{path}", {}, subject, kind) as response:
        yield json.loads(_within(partial(_content, response)))


@contextmanager
def opened(url: str, headers: dict[str, str], subject: str, kind: RepositoryKind) -> Iterator[httpx2.Response]:
    """Open a successful response, whose content is not read yet."""
    with translated(subject):
        headers |= _request_headers()
        response = _within(partial(_send, "GET", url, headers, _timeout_s()))
    with closing(response):
        if not response.is_success:
            raise _response_error(subject, kind, response)
        yield response


def _request_headers() -> dict[str, str]:
    """Headers like huggingface_hub's, whose own function would first request a list of agents, and trust it."""
    from huggingface_hub.utils._headers import get_token_to_send

    headers = {"User-Agent": f"{_LIBRARY_NAME}/{__version__}"}
    if token := get_token_to_send(None):
        headers["Authorization"] = f"Bearer {token}"
    return headers


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
    limit_s = patience_s()
    try:
        return future.result(limit_s)
    except TimeoutError as error:
        raise HubError(f"{endpoint()} did not respond completely within {limit_s:g} s", CHECK_NETWORK) from error


def not_a_hub() -> HubError:
    return HubError(
        f"unexpected response from {endpoint()}: not a Hugging Face Hub",
        "check the network, and HF_ENDPOINT if it is set",
    )


@contextmanager
def translated(subject: str) -> Iterator[None]:
    """Translate the errors of requests about `subject`."""
    constants()
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
        raise not_a_hub() from error


def _response_error(subject: str, kind: RepositoryKind, response: httpx2.Response) -> CerebrumError:
    """Error for an HTTP error response; `subject` begins with the id of the repository."""
    import httpx2

    status = response.status_code
    code = response.headers.get("X-Error-Code")
    repo_id = "/".join(subject.split("/")[:2])
    page = f"{endpoint()}/{repo_id}"
    if kind == "dataset":
        page = f"{endpoint()}/datasets/{repo_id}"
    if code == "RevisionNotFound":
        return ModelNotFound(f"{repo_id} has no such revision", f"see its branches at {page}/tree/main")
    # The Hub redirects requests for files to its storage, whose URLs are valid for an hour, and renamed repositories.
    is_from_storage = response.url.netloc != httpx2.URL(endpoint()).netloc
    if is_from_storage and status in (401, 403, 404):
        return HubError(f"the Hub's storage rejected the download URL ({status})", _LATER, retries=2)
    if code == "GatedRepo" or status in (401, 403, 404):
        return _access_error(subject, repo_id, page, response)
    retries = 5 if status in (408, 429) or status >= 500 else 0
    problem = f"the Hub responded {status} {response.reason_phrase}"
    wait_s = _requested_wait(response)
    is_overload = status == 429 or (status == 503 and wait_s is not None)
    return HubError(problem, _LATER, retries, wait_s, is_overload)


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
    return HubError(f"{host}: {problem}", CHECK_NETWORK, retries)


def endpoint() -> str:
    return environment("HF_ENDPOINT") or "https://huggingface.co"
