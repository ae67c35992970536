"""The Hugging Face Hub, through huggingface_hub: its addresses, its tokens, its locks and its errors.

This is the one file that imports it. What goes wrong leaves as an error of this program, which says whether trying
again may help.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from cerebrum_cli import __version__
from cerebrum_cli.catalogue.cache import COMMIT, SHA256
from cerebrum_cli.catalogue.hub_errors import ErrorResponse, HubError, Token, connection_error
from cerebrum_cli.catalogue.reference import MAIN, is_safe_path
from cerebrum_cli.core.errors import CerebrumError, ConfigError, PullError
from cerebrum_cli.core.settings import environment, forget_empty_variable

if TYPE_CHECKING:
    from types import ModuleType

    import httpx2
    from huggingface_hub import CachedFileInfo, HFCacheInfo

_VARIABLES = ("HF_ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")  # an empty one means what none means
_LIBRARY_NAME = "cerebrum"  # as the Hub's statistics see us
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class HubFile(NamedTuple):
    """A file of a repository: its path there, its bytes, and its SHA-256 as the Hub's large-file store lists it."""

    name: str
    size: int
    sha256: str | None

    @property
    def digest(self) -> str:
        """The SHA-256. PullError where the Hub lists none: such a file cannot be checked."""
        if self.sha256 is None:
            raise PullError(f"{self.name}: the Hub lists no SHA-256 of it", "choose another file")
        return self.sha256


@dataclass(frozen=True, slots=True)
class Listing:
    """One commit of a repository: what `revision` was when it was asked for, and the GGUF files in it."""

    repo_id: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]

    def file(self, name: str) -> HubFile:
        """Return the file of that path."""
        return next(file for file in self.files if file.name == name)


class Body(NamedTuple):
    """The bytes of a file as they come, and the place in it where they begin."""

    start: int
    chunks: Iterator[bytes]


def cache_directory() -> Path:
    """Return where huggingface_hub keeps files, as HF_HUB_CACHE, HF_HOME and their likes say."""
    return Path(_constants().HF_HUB_CACHE).absolute()


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids the network."""
    return bool(_constants().is_offline_mode())


def token() -> Token:
    """Return where the user's token is kept, and whether there is one; no network is used, not even to renew it."""
    location, text = _token_location(), environment("HF_TOKEN") or ""
    if not text:
        with contextlib.suppress(FileNotFoundError):
            text = Path(location).read_text(encoding="utf-8", errors="surrogateescape")
    if not text.isascii() or len(text.split()) > 1:
        raise PullError(f"the token in {location} holds characters no token has", "correct it")
    return Token(location, bool(text.strip()))


def check_reachable(timeout: float) -> str:
    """Ask the Hub whether it is there, without a token, and return its address; HubError where it is not.

    `timeout` is each stage's, in seconds; to look a name up may take longer.
    """
    endpoint = _endpoint()
    _constants()
    from huggingface_hub import get_session

    with _translated(endpoint):
        response = get_session().head(endpoint, timeout=timeout, headers={"Accept-Encoding": "identity"})
    if response.status_code >= 500:
        raise HubError(f"{endpoint} is in trouble ({response.status_code})", "try again later")
    return endpoint


def _constants() -> ModuleType:
    """Return what huggingface_hub makes of the environment. ConfigError for a value that it would stumble over."""
    for name in _VARIABLES:
        forget_empty_variable(name)
    endpoint = _endpoint()
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        hint = "set HF_ENDPOINT to one such as https://huggingface.co, or unset it"
        raise ConfigError(f"HF_ENDPOINT is {endpoint!r}, no address of a Hub", hint)
    try:
        from huggingface_hub import constants
    except ValueError as error:
        problem = f"a variable that begins with HF_ is wrong: {error}"
        raise ConfigError(problem, "correct it, or unset it") from error
    return constants


def list_repository(repo_id: str, revision: str | None = None) -> Listing:
    """Ask the Hub which GGUF files a revision of a repository holds, `main` unless another is named.

    Raises ModelNotFound where there is no such repository or revision, HubError for all else.
    """
    timeout = _constants().HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub import HfApi

    with _translated(repo_id):
        info = HfApi(library_name=_LIBRARY_NAME, library_version=__version__).model_info(
            repo_id, revision=revision or MAIN, files_metadata=True, timeout=timeout
        )
        files = tuple(
            HubFile(file.rfilename, int(file.size or 0), _sha256(file.lfs.sha256 if file.lfs else None))
            for file in info.siblings or ()
            if file.rfilename.lower().endswith(".gguf") and is_safe_path(file.rfilename)
        )
        commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise _not_a_hub()
    return Listing(repo_id, revision or MAIN, commit, files)


def _sha256(digest: str | None) -> str | None:
    return digest if digest and SHA256.fullmatch(digest) else None


@contextlib.contextmanager
def open_file(listing: Listing, name: str, start: int = 0, end: int | None = None) -> Iterator[Body]:
    """Open a file of a listing from byte `start` on, to byte `end` or its own; raises as `list_repository` does.

    A server that knows no ranges sends all of it: the body says where it begins.
    """
    timeout = _constants().HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status

    subject = f"{listing.repo_id}/{name}"
    with contextlib.ExitStack() as stack:
        with _translated(subject):
            headers = build_hf_headers(library_name=_LIBRARY_NAME, library_version=__version__)
            headers["Accept-Encoding"] = "identity"
            if start or end is not None:
                headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            url = hf_hub_url(listing.repo_id, name, revision=listing.commit)
            response = stack.enter_context(get_session().stream("GET", url, headers=headers, timeout=timeout))
            hf_raise_for_status(response)
        yield Body(_body_start(response, start), _chunks(subject, response))


def _chunks(subject: str, response: httpx2.Response) -> Iterator[bytes]:
    with _translated(subject):
        yield from response.iter_raw()


@contextlib.contextmanager
def blob_lock(path: Path, on_wait: Iterator[None]) -> Iterator[None]:
    """Hold huggingface_hub's own lock of a blob; `waiting` is stepped twice a second while another process has it."""
    from filelock import Timeout
    from huggingface_hub.utils._fixes import WeakFileLock

    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(path, timeout=0.5))
                break
            except Timeout:
                next(on_wait, None)
        yield


def delete(paths: tuple[Path, ...]) -> int:
    """Delete files of the cache, by the paths their names have there, and return the bytes that were freed.

    Blobs go when no other revision uses them, revisions when nothing is left of them, a repository likewise.
    """
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(cache_directory())
    requested = {path.parent.resolve() / path.name for path in paths}
    revisions = (revision for repo in cache.repos for revision in repo.revisions)
    files = {file for revision in revisions for file in revision.files if file.file_path in requested}
    if len(files) < len(requested):
        warning = next((str(warning) for warning in cache.warnings), "its files are gone")
        raise PullError(f"the cache in {cache_directory()} is damaged: {warning}", "look at it with: hf cache ls -vvv")
    try:
        return _delete_files(cache, files)
    except OSError as error:
        raise PullError(f"{error.filename}: {error.strerror}", "see to it that the cache can be written to") from error


def _delete_files(cache: HFCacheInfo, files: set[CachedFileInfo]) -> int:
    from huggingface_hub import scan_cache_dir

    strategy = cache.delete_files(*files)
    strategy.execute()
    incomplete = {partial.file_path.parent.parent for partial in cache.incomplete_files}
    empty_revisions = [
        revision.commit_hash
        for repo in cache.repos
        for revision in repo.revisions
        if revision.files <= files and revision.snapshot_path.parent.parent not in incomplete
    ]
    scan_cache_dir(cache_directory()).delete_revisions(*empty_revisions).execute()
    return strategy.expected_freed_size


def _body_start(response: httpx2.Response, requested: int) -> int:
    """Return where in the file a body begins: where it was asked to, or at its first byte."""
    if response.status_code != 206:
        return 0
    range_header = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if range_header is None or int(range_header[1]) != requested:
        raise HubError("the server sends another part of the file than it was asked for", "pull again later", retries=2)
    return requested


def _not_a_hub() -> HubError:
    hint = "check the network, and HF_ENDPOINT where it is set"
    return HubError(f"what {_endpoint()} answers is not what a Hub would", hint)


@contextlib.contextmanager
def _translated(subject: str) -> Iterator[None]:
    """Turn what huggingface_hub and the network raise into errors of this program."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        raise _response_error(subject, error.response) from error
    except OfflineModeIsEnabled as error:
        raise HubError(
            f"{subject}: HF_HUB_OFFLINE forbids asking the Hub", "unset it, or use what cerebrum list shows"
        ) from error
    except (HFValidationError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise HubError(f"{subject}: {error}", "check the reference, and HF_ENDPOINT where it is set") from error
    except httpx2.TransportError as error:
        raise connection_error(error.request.url.netloc.decode("ascii", "replace"), error) from error
    except UnicodeEncodeError as error:
        raise HubError(f"the token in {_token_location()} holds characters no token has", "correct it") from error
    except ImportError as error:
        raise HubError(f"the network cannot be used: {error}", "install what is named, or change the proxy") from error
    except OSError as error:  # a token or a certificate that cannot be read
        problem = f"{error.filename or subject}: {error.strerror or error}"
        raise HubError(problem, "see to it that it can be read") from error
    except (httpx2.RequestError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_a_hub() from error


def _response_error(subject: str, response: httpx2.Response) -> CerebrumError:
    from huggingface_hub import get_token

    token = Token(_token_location(), get_token() is not None)
    return ErrorResponse(
        subject, response.status_code, response.headers, bool(response.history), _endpoint(), token
    ).error()


def _token_location() -> str:
    return "HF_TOKEN" if environment("HF_TOKEN") else str(_constants().HF_TOKEN_PATH)


def _endpoint() -> str:
    return environment("HF_ENDPOINT") or "https://huggingface.co"
