"""A Hugging Face Hub on loopback, for the real client: repositories, their commits, and a CDN on another port.

Faults strike requests, and a log holds what was asked for. A dataset is a repository whose id has the prefix DATASETS
here, as its address has on the Hub.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePosixPath
from threading import Lock
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from loopback import ArmedFault, CountedFault, Loopback, LoopbackHandler, reset
from waiting import wait_until

Part = Literal["api", "resolve", "cdn", "other"]
Headers = tuple[tuple[str, str], ...]
Source = bytes | Path  # of a file

BLOCK = 256 * 1024
DATASETS = "datasets/"
LFS_SUFFIXES = {".gguf", ".safetensors", ".bin", ".parquet"}  # in a new repository's .gitattributes, in part
API = re.compile(r"/api/(?:models/|(datasets/))([^/]+/[^/]+)(?:/revision/([^/]+))?")
SEARCH = "/api/models"
RESOLVE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
SIGNED = "Expires=3600&Signature=signed"


@dataclass(slots=True, eq=False)
class Request:
    """What a client asked and what it got so far; `sent` counts the body's bytes as the socket takes them.

    `beside` counts the requests for the same part that were under way when it came; one whose last bytes are being sent
    is not.
    """

    part: Part
    method: str
    path: str  # with its query, as on the wire
    headers: Mapping[str, str]  # names in lower case
    sent: int = 0
    beside: int = 0
    is_under_way: bool = True

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def token(self) -> str | None:
        authorization = self.headers.get("authorization")
        return authorization and authorization.removeprefix("Bearer ")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer ready to be sent, whose body begins at byte `start` of a file."""

    status: int
    headers: Headers
    body: memoryview
    start: int = 0


def json_reply(value: Any, headers: Headers = (), status: int = 200) -> Reply:
    kind = ("Content-Type", "application/json; charset=utf-8")
    return Reply(status, (kind, *headers), memoryview(json.dumps(value).encode()))


def refusal(status: int, message: str, code: str = "", headers: Headers = ()) -> Reply:
    """An answer that is no success, in the Hub's shape."""
    codes = (("X-Error-Code", code),) if code else ()
    return json_reply({"error": message}, (*codes, ("X-Error-Message", message), *headers), status)


# The real Hub says 401 to a stranger who asks for what does not exist. Its client sees through it on https only; so
# that it does here too, the code says what the client would have guessed.
STRANGER = refusal(401, "Invalid username or password.", "RepoNotFound")
WRONG_TOKEN = refusal(401, "Invalid credentials in Authorization header")
FORBIDDEN = refusal(403, "This token has no access to this resource")
REPO_NOT_FOUND = refusal(404, "Repository not found", "RepoNotFound")
REVISION_NOT_FOUND = refusal(404, "Invalid rev id", "RevisionNotFound")
ENTRY_NOT_FOUND = refusal(404, "Entry not found", "EntryNotFound")
RATE_LIMITED = refusal(429, "We had to rate limit you")
SERVER_ERROR = refusal(500, "Internal Error - We're working hard to fix this as soon as possible!")
UNAVAILABLE = refusal(503, "Service Unavailable")
UNSATISFIABLE = refusal(416, "The requested range is not satisfiable")
NO_SUCH_PAGE = refusal(404, "Sorry, we can't find the page you are looking for.")
GATED = refusal(403, "Access to this model is restricted and you are not in the authorized list.", "GatedRepo")
GATED_STRANGER = replace(GATED, status=401)


class Refused(Exception):
    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(CountedFault):
    """What goes wrong with requests for a part.

    Bytes of `cut_after` and `hang_after` count from the start of the answer's body, `flip_at` from the file's start.
    `headers` replace those of the reply; `raw` is sent in place of a reply, and need not be HTTP.
    A request that hangs goes on when released. Several misfortunes may strike one request.
    """

    part: Part
    path: str = ""  # any part of the request's path and query
    refusal: Reply | None = None
    raw: Sequence[bytes] | None = None
    cut_after: int | None = None
    reset: bool = False  # how a cut ends: with TCP's RST instead of FIN; what was on its way may be lost
    hang_after: int | None = None
    flip_at: int | None = None
    ignore_range: bool = False
    bytes_per_second: int | None = None
    headers: Headers = ()
    promised_more: int = 0  # bytes that are announced and never sent
    sent_more: int = 0  # bytes after those asked for

    def body(self, reply: Reply) -> memoryview:
        body = reply.body
        if self.flip_at is not None and reply.start <= self.flip_at < reply.start + len(body):
            changed = bytearray(body)
            changed[self.flip_at - reply.start] ^= 0xFF
            body = memoryview(changed)
        return body[: self.cut_after]


class Armed(ArmedFault[Fault]):
    def strike(self, request: Request) -> bool:
        fault = self.fault
        return request.part == fault.part and fault.path in request.path and self.strike_next()

    def release(self) -> None:
        self.released.set()


HEALTHY = Armed(Fault(part="other"))


class Log:
    """The requests in the order of their arrival, those under way included."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._lock = Lock()

    def add(self, request: Request) -> None:
        with self._lock:
            request.beside = sum(other.part == request.part and other.is_under_way for other in self._requests)
            self._requests.append(request)

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()

    def requests(self, part: Part | None = None) -> tuple[Request, ...]:
        with self._lock:
            return tuple(each for each in self._requests if part in (None, each.part))

    def wait_for(self, condition: Callable[[Request], bool]) -> None:
        wait_until(lambda: any(map(condition, self.requests())))


class Listener(Loopback):
    def __init__(self, hub: HubServer, part: Callable[[str], Part]) -> None:
        super().__init__(_Exchange)
        self.hub = hub
        self.part = part


class _Exchange(LoopbackHandler):
    """One connection: requests, each noted, struck by its fault if there is one, and answered."""

    server: Listener

    def do_GET(self) -> None:
        hub, headers = self.server.hub, {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.server.part(self.path), self.command, self.path, headers)
        hub.log.add(request)
        armed = next((armed for armed in hub.armed if armed.strike(request)), HEALTHY)
        fault = armed.fault
        if fault.raw is not None:
            self.close_connection = True
            self.wfile.write(b"".join(fault.raw))
            return
        reply = fault.refusal or hub.reply(request, ignore_range=fault.ignore_range)
        length = len(reply.body) + fault.promised_more + fault.sent_more
        replaced = {**dict(reply.headers), "Content-Length": str(length), **dict(fault.headers)}
        self.write_head(reply.status, replaced.items())
        try:
            if self.command != "HEAD":
                self._write_body(fault.body(reply), armed, request)
        finally:
            request.is_under_way = False

    do_HEAD = do_GET

    def _write_body(self, body: memoryview, armed: Armed, request: Request) -> None:
        fault = armed.fault
        block = max(1, fault.bytes_per_second // 20) if fault.bytes_per_second else BLOCK
        starts = {*range(0, len(body), block)}
        if fault.hang_after is not None and fault.hang_after < len(body):
            starts.add(fault.hang_after)
        for start, stop in pairwise([*sorted(starts), len(body)]):
            if start == fault.hang_after:
                self.hang(armed.released)
            request.sent += stop - start
            request.is_under_way = stop < len(body)
            self.connection.sendall(body[start:stop])
            if fault.bytes_per_second:
                time.sleep((stop - start) / fault.bytes_per_second)
        self.connection.sendall(bytes(fault.sent_more))
        if fault.cut_after is not None or fault.promised_more:
            self.close_connection = True
            if fault.reset:
                reset(self.connection)


@dataclass(frozen=True, slots=True)
class Content:
    """A file: its bytes, in memory or on disk, and its SHA-256, or git's hash of one that is not in LFS."""

    data: memoryview
    digest: str
    is_large: bool

    @classmethod
    def of(cls, name: str, source: Source) -> Content:
        data = opened(source)
        if PurePosixPath(name).suffix in LFS_SUFFIXES:
            return cls(data, hashlib.sha256(data).hexdigest(), True)
        return cls(data, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), False)

    @property
    def listed(self) -> dict[str, Any]:
        size = len(self.data)
        lfs = {"lfs": {"sha256": self.digest, "size": size, "pointerSize": 134}} if self.is_large else {}
        return {"size": size, "blobId": self.digest[:40], **lfs}


def opened(source: Source) -> memoryview:
    if isinstance(source, bytes) or not source.stat().st_size:
        return memoryview(source if isinstance(source, bytes) else b"")
    with source.open("rb") as file:
        return memoryview(mmap(file.fileno(), 0, access=ACCESS_READ))


@dataclass(frozen=True, slots=True)
class Commit:
    hash: str
    files: Mapping[str, Content]


@dataclass(slots=True)
class Repository:
    """A repository: who may read it, and its commits under their branches and hashes."""

    repo_id: str
    private: bool = False
    gated: Literal[False, "auto", "manual"] = False
    readers: tuple[str, ...] = ()  # tokens, for what is not public
    license: str = "apache-2.0"
    downloads: int = 0
    quantized_from: str = ""  # the model that its card names as the base
    branches: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, files: Mapping[str, Source | None]) -> str:
        """Move `main` on with files new, changed or, if None, removed. Return the commit's hash."""
        before = self.branches["main"].files if self.branches else {}
        changed = {name: Content.of(name, source) for name, source in files.items() if source is not None}
        kept = {name: file for name, file in before.items() if name not in files}
        content = dict(sorted({**kept, **changed}.items()))
        names = [self.repo_id, str(len(self.commits)), *(f"{name} {file.digest}" for name, file in content.items())]
        commit = Commit(hashlib.sha1("\n".join(names).encode()).hexdigest(), content)
        self.commits[commit.hash] = self.branches["main"] = commit
        return commit.hash

    def at(self, revision: str) -> Commit:
        commit = self.branches.get(revision) or self.commits.get(revision)
        if commit is None:
            raise Refused(REVISION_NOT_FOUND)
        return commit

    def listed(self, commit: Commit, blobs: bool) -> dict[str, Any]:
        """The page `/api/models/...`, with the sizes and digests of files if `blobs`."""
        return {
            "id": self.repo_id.removeprefix(DATASETS),
            "sha": commit.hash,
            "lastModified": "2026-01-02T03:04:05.000Z",
            "private": self.private,
            "gated": self.gated,
            "downloads": self.downloads,
            "tags": ["gguf", "region:us", f"license:{self.license}", f"base_model:quantized:{self.quantized_from}"],
            "siblings": [{"rfilename": name, **(file.listed if blobs else {})} for name, file in commit.files.items()],
        }


class HubServer:
    """A Hub and its CDN, each on a port of its own. `tokens` are those the Hub knows; any other is refused everywhere.

    Of several faults in `armed` that fit a request, the first strikes.
    """

    def __init__(self, *, tokens: tuple[str, ...] = ()) -> None:
        self.tokens = tokens
        self.log = Log()
        self.repositories: dict[str, Repository] = {}
        self.armed: list[Armed] = []
        self._listeners = (Listener(self, part_of_hub), Listener(self, lambda path: "cdn"))
        self.url, self.cdn_url = (f"http://127.0.0.1:{listener.server_port}" for listener in self._listeners)

    def __enter__(self) -> HubServer:
        for listener in self._listeners:
            listener.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for listener in self._listeners:
            listener.stop()
        bugs = [bug for listener in self._listeners for bug in listener.bugs]
        if bugs and error is None:
            raise bugs[0]

    def repository(self, repo_id: str, files: Mapping[str, Source], **access: Any) -> Repository:
        """Create a repository with a first commit on `main`; `access` are fields of `Repository`."""
        self.repositories[repo_id] = repository = Repository(repo_id, **access)
        repository.commit(files)
        return repository

    def arm(self, fault: Fault) -> Armed:
        self.armed.append(Armed(fault))
        return self.armed[-1]

    def environment(self, home: Path) -> dict[str, str]:
        """What a process must have in its environment to meet this Hub and no other, caching in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DISABLE_TELEMETRY": "1",  # with it on, each new home asks for /api/agent-harnesses first
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def reply(self, request: Request, ignore_range: bool) -> Reply:
        url, asked_range = urlsplit(request.path), "" if ignore_range else request.range or ""
        try:
            if request.part == "cdn":
                return self._blob(request, url.path, asked_range)
            if match := RESOLVE.fullmatch(url.path):
                return self._file(request, asked_range, *map(unquote, match.groups()))
            if url.path == SEARCH:
                return self._search(request, parse_qs(url.query))
            if match := API.fullmatch(url.path):
                repository = self._readable(request, (match[1] or "") + unquote(match[2]))
                commit = repository.at(unquote(match[3] or "main"))
                return json_reply(repository.listed(commit, blobs=parse_qs(url.query).get("blobs") == ["true"]))
            raise Refused(NO_SUCH_PAGE)
        except Refused as refused:
            return refused.reply

    def _search(self, request: Request, query: dict[str, list[str]]) -> Reply:
        """The models with a text in their names and all tags, the most downloaded first, with the requested fields."""
        assert (query["filter"][0], query["sort"]) == ("gguf", ["downloads"]), query
        if request.token is not None and request.token not in self.tokens:
            raise Refused(WRONG_TOKEN)
        text = query.get("search", [""])[0].lower()
        found = [each for each in self.repositories.values() if text in each.repo_id.lower() and not each.private]
        found.sort(key=lambda each: -each.downloads)
        fields = {"id", *query["expand"]}
        rows = [each.listed(each.branches["main"], blobs=False) for each in found]
        rows = [row for row in rows if {*query["filter"]} <= {*row["tags"]}][: int(query["limit"][0])]
        return json_reply([{key: row[key] for key in row.keys() & fields} for row in rows])

    def _readable(self, request: Request, repo_id: str) -> Repository:
        """The repository if the client may know of it, and read it if it wants a file."""
        repository, token = self.repositories.get(repo_id), request.token
        if token is not None and token not in self.tokens:
            raise Refused(WRONG_TOKEN)
        if repository is None or (repository.private and token not in repository.readers):
            raise Refused(STRANGER if token is None else REPO_NOT_FOUND)
        if repository.gated and request.part == "resolve" and token not in repository.readers:
            raise Refused(GATED_STRANGER if token is None else GATED)
        return repository

    def _file(self, request: Request, asked_range: str, repo_id: str, revision: str, name: str) -> Reply:
        """Redirect to the CDN for a file in LFS; hand out a small one here."""
        commit = self._readable(request, repo_id).at(revision)
        headers = (("X-Repo-Commit", commit.hash), ("Accept-Ranges", "bytes"))
        file = commit.files.get(name)
        if file is None:
            raise Refused(replace(ENTRY_NOT_FOUND, headers=(*ENTRY_NOT_FOUND.headers, *headers)))
        if not file.is_large:
            return ranged(asked_range, file, headers)
        place = f"{self.cdn_url}/{repo_id}/{file.digest}/{quote(PurePosixPath(name).name)}?{SIGNED}"
        linked = (("X-Linked-Size", str(len(file.data))), ("X-Linked-Etag", f'"{file.digest}"'))
        return Reply(302, (("Location", place), *headers, *linked), memoryview(b"Found."))

    def _blob(self, request: Request, path: str, asked_range: str) -> Reply:
        *owner_and_name, digest, _ = path.strip("/").split("/")
        repository = self.repositories.get("/".join(owner_and_name))
        commits = [] if repository is None else [*repository.commits.values()]
        known = {file.digest: file for commit in commits for file in commit.files.values()}
        if digest not in known or SIGNED not in request.path:
            raise Refused(FORBIDDEN)
        return ranged(asked_range, known[digest], (("Accept-Ranges", "bytes"),))


def part_of_hub(path: str) -> Part:
    plain = urlsplit(path).path
    return "api" if plain == SEARCH or API.fullmatch(plain) else "resolve" if RESOLVE.fullmatch(plain) else "other"


def ranged(asked_range: str, file: Content, headers: Headers) -> Reply:
    """A file, or of it what one Range asks for; several ranges count as none."""
    headers = (("Content-Type", "application/octet-stream"), ("ETag", f'"{file.digest}"'), *headers)
    match = RANGE.fullmatch(asked_range)
    if match is None:
        return Reply(200, headers, file.data)
    start, size = int(match[1]), len(file.data)
    stop = min(size, int(match[2]) + 1) if match[2] else size
    if start >= stop:
        raise Refused(UNSATISFIABLE)
    within = ("Content-Range", f"bytes {start}-{stop - 1}/{size}")
    return Reply(206, (*headers, within), file.data[start:stop], start)
