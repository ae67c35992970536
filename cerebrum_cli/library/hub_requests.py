"""Requests to the Hugging Face Hub by huggingface_hub, the translation of its errors, and when to try again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cerebrum_cli.core.environment import environment, named_proxy, set_environment_default
from cerebrum_cli.core.errors import DAMAGE, CerebrumError, ConfigError, ModelNotFound, PullError
from cerebrum_cli.core.events import NoticeEvent, Progress
from cerebrum_cli.core.files import exists
from cerebrum_cli.core.version import __version__
from cerebrum_cli.library.cache import RepositoryKind

if TYPE_CHECKING:
    from types import ModuleType

    import httpx2
    from huggingface_hub import HfApi

CONNECT_S = 3.0  # for each address of the Hub
MAX_WAIT_S = 600.0  # the rate limits of the Hub last 300
MAX_BACKOFF_S = 16.0

P = ParamSpec("P")
T = TypeVar("T")

_WAIT = r"(?:^|r=0;t=)(\d+)"  # seconds, in `Retry-After: 55` or `RateLimit: "api";r=0;t=55`
_LATER = "try again later"
_LOG_IN = "run hf auth login, or set HF_TOKEN"
CHECK_NETWORK = (
    "check the network, the proxy settings, SSL_CERT_FILE and HF_ENDPOINT; "
    "these need no Hub: cerebrum pull ./model.gguf, cerebrum pull starter"
)


class HubError(PullError):
    """The Hub did not respond as expected. `retries` is how often to retry, `wait_s` the delay it asks for."""

    def __init__(self, problem: str, hint: str, retries: int = 0, wait_s: float | None = None) -> None:
        super().__init__(problem, hint)
        self.retries = retries
        self.wait_s = wait_s


@dataclass(slots=True)
class RetryPolicy:
    """Delays before retries: exponential backoff, or as long as the Hub asks; each error sets its number of retries."""

    progress: Progress
    failures: int = 0  # in a row

    def run(self, request: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        while True:
            try:
                return request(*arguments, **keywords)
            except HubError as error:
                sleep(self.delay(error))

    def delay(self, error: HubError) -> float:
        """Seconds until the next attempt, after a notice; raise the error if there is none, or it would be too late."""
        seconds = min(MAX_BACKOFF_S, 2.0**self.failures) if error.wait_s is None else error.wait_s
        self.failures += 1
        if self.failures > error.retries or seconds > MAX_WAIT_S:
            raise error
        self.progress.notice(NoticeEvent(error.message, f"retrying in {seconds:.0f} s"))
        return seconds


def constants() -> ModuleType:
    """Values that huggingface_hub reads from the environment. Raises ConfigError for invalid ones."""
    set_environment_default("HF_HUB_DISABLE_TELEMETRY", "1")  # else its first request is for a list of agents
    try:
        from huggingface_hub import constants as values
    except ValueError as error:
        raise ConfigError(f"invalid HF_ environment variable: {error}", "correct it, or unset it") from error
    return values


def endpoint() -> str:
    return str(constants().ENDPOINT)


def shown_endpoint() -> str:
    """The address of the Hub for a message: without a password."""
    scheme, slashes, host = endpoint().rpartition("//")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}"


def hub_api() -> HfApi:
    constants()
    from huggingface_hub import HfApi

    return HfApi(library_name="cerebrum", library_version=__version__)


def timeout() -> Any:  # which huggingface_hub takes for a number, and hands to httpx2
    import httpx2

    return httpx2.Timeout(float(constants().HF_HUB_DOWNLOAD_TIMEOUT), connect=CONNECT_S)


@contextmanager
def opened(url: str, **request: Any) -> Iterator[httpx2.Response]:
    """The response to a GET with the user's token, whose body is not read yet. Raises HfHubHTTPError."""
    from huggingface_hub import get_session
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status

    client = get_session()
    headers = build_hf_headers(library_name="cerebrum", library_version=__version__) | request.pop("headers", {})
    built = client.build_request("GET", url, headers=headers, timeout=timeout(), **request)
    with closing(client.send(built, stream=True)) as response:
        if not response.is_success:
            response.read()
        hf_raise_for_status(response)
        yield response


def token_location() -> str | None:
    """Where the user's token is: in a variable or a file; None without one."""
    if environment("HF_TOKEN"):
        return "HF_TOKEN"
    path = str(constants().HF_TOKEN_PATH)
    return path if exists(path) else None


def check_reachable() -> str:
    """Request the Hub without a token, and return its address. Raises HubError."""
    address = endpoint()
    with translated(address):
        from huggingface_hub import get_session

        response = get_session().head(address, timeout=CONNECT_S)
    if response.status_code >= 500:
        raise HubError(f"{shown_endpoint()}: server error {response.status_code}", _LATER)
    return shown_endpoint()


@contextmanager
def translated(subject: str, kind: RepositoryKind = "model") -> Iterator[None]:
    """Translate the errors of requests about `subject`, which begins with the ID of a repository."""
    constants()
    import httpx2
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_session()
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise HubError(f"cannot use the proxy: {error}", "write it like http://HOST:PORT") from error
    if (path := Path(constants().HF_TOKEN_PATH)).is_fifo():  # reading it might never end
        raise HubError(f"{path} is a pipe, not a file with a token", _LOG_IN)
    try:
        yield
    except HfHubHTTPError as error:
        raise _response_error(subject, kind, error) from error
    except UnicodeEncodeError as error:
        raise HubError(f"invalid characters in the token from {token_location()}", _LOG_IN) from error
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, *DAMAGE) as error:
        raise not_a_hub() from error
    except httpx2.TransportError as error:
        raise _connection_error(error) from error
    except httpx2.RequestError as error:  # redirects without an end, bytes that cannot be decoded
        raise not_a_hub() from error
    except (ImportError, OSError) as error:  # offline; an unreadable token or certificate
        problem = f"cannot use the network: {error}"
        raise HubError(problem, "check HF_HUB_OFFLINE, the token and SSL_CERT_FILE") from error


def not_a_hub() -> HubError:
    return HubError(
        f"unexpected response from {shown_endpoint()}: not a Hugging Face Hub",
        "check the network, and HF_ENDPOINT if it is set",
    )


def _response_error(subject: str, kind: RepositoryKind, error: Any) -> CerebrumError:
    """The error for an HfHubHTTPError. The storage of files, to which the Hub redirects, rejects a URL that is old."""
    import httpx2

    response: httpx2.Response = error.response
    status = response.status_code
    if response.url.netloc == httpx2.URL(endpoint()).netloc and status in (401, 403, 404):
        return _access_error(subject, kind, error)
    limit = re.search(_WAIT, f"{response.headers.get('Retry-After')} {response.headers.get('RateLimit')}")
    retries = 5 if status in (408, 429) or status >= 500 else 0
    if status in (401, 403, 404):
        retries = 2
    problem = f"the Hub responded {status} {response.reason_phrase}"
    return HubError(problem, _LATER, retries, float(limit[1]) if limit else None)


def _access_error(subject: str, kind: RepositoryKind, error: Any) -> CerebrumError:
    """The error for a repository that does not exist, or that the user may not read."""
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    repo_id = "/".join(subject.split("/")[:2])
    page = f"{shown_endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    message = error.response.headers.get("X-Error-Message", "")
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"{repo_id} has no such revision", f"see its branches at {page}/tree/main")
    if isinstance(error, GatedRepoError):
        hint = f"accept them at {page}, then {_LOG_IN}"
        return HubError(f"{repo_id} is gated: you must accept its terms first", hint)
    if error.response.status_code == 403:
        problem = f"the Hub denied access to {subject}: {message or 'forbidden'}"
        return HubError(problem, "use a token with access: set HF_TOKEN")
    if "credentials in Authorization" in message:
        return HubError(f"the Hub rejected the token in {token_location()}", _LOG_IN)
    hint = f"check the spelling; for a private repository {_LOG_IN}"
    return ModelNotFound(f"{repo_id}: no such repository on the Hub, or it is private", hint)


def _connection_error(error: httpx2.TransportError) -> HubError:
    import socket
    import ssl

    import httpx2

    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    problems = {  # the first match wins
        socket.gaierror: "cannot resolve the host name",
        ssl.SSLError: "cannot verify its certificate",
        TimeoutError: "timed out",
        ConnectionRefusedError: "connection refused",
        Exception: "connection lost",
    }
    problem = next(problems[kind] for kind in problems if any(isinstance(cause, kind) for cause in causes))
    is_connected = not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
    url = error.request.url
    host = url.netloc.decode("ascii", "replace")
    if proxy := named_proxy(url.scheme, url.host):
        host += f" via proxy {proxy.rpartition('//')[2].rpartition('@')[2]}"
    return HubError(f"{host}: {problem}", CHECK_NETWORK, retries=5 if is_connected else 1)
