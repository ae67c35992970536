"""A Hugging Face Hub on loopback, for the real client: repositories, their commits, and a CDN on another port.

Faults strike requests, and a log holds what was asked for. A dataset is a repository whose id has the prefix DATASETS
here, as its address has on the Hub.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from threading import Condition
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from loopback import ArmedFault, CountedFault, Loopback, LoopbackHandler, reset

Part = Literal["api", "resolve", "cdn", "other"]
Headers = tuple[tuple[str, str], ...]
Source = bytes | Path | int  # of a file; of one that is only listed, its size

BLOCK = 256 * 1024
DATASETS = "datasets/"
LFS_SUFFIXES = {".gguf", ".safetensors", ".bin", ".parquet"}  # in a new repository's .gitattributes, in part
API = re.compile(r"/api/(?:models/|(datasets/))([^/]+/[^/]+)(?:/revision/([^/]+))?")
SEARCH = "/api/models"
RESOLVE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
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
    status: int | None = None
    sent: int = 0
    beside: int = 0
    is_under_way: bool = True

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")

    @property
    def token(self) -> str | None:
        return self.authorization and self.authorization.removeprefix("Bearer ")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer ready to be sent: bytes `start` to `stop` of the body."""

    status: int
    headers: Headers
    body: bytes | Path
    start: int
    stop: int


def json_reply(value: Any, headers: Headers = (), status: int = 200) -> Reply:
    body = json.dumps(value).encode()
    return Reply(status, (("Content-Type", "application/json; charset=utf-8"), *headers), body, 0, len(body))


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is no success, in the Hub's shape; in `message`, {} stands for what was asked for."""

    status: int
    message: str
    code: str | None = None
    headers: Headers = ()

    def with_header(self, name: str, value: str) -> Refusal:
        return replace(self, headers=(*self.headers, (name, value)))

    def resetting_after(self, seconds: int) -> Refusal:
        return self.with_header("RateLimit", f'"api";r=0;t={seconds}')

    def reply(self, subject: str = "{}") -> Reply:
        message = self.message.replace("{}", subject)
        code = () if self.code is None else (("X-Error-Code", self.code),)
        plain = message.encode("ascii", "replace").decode()  # all that a header can carry
        return json_reply({"error": message}, (*code, ("X-Error-Message", plain), *self.headers), self.status)


# The real Hub says 401 to a stranger who asks for what does not exist. Its client sees through it on https only; so
# that it does here too, the code says what the client would have guessed.
STRANGER = Refusal(401, "Invalid username or password.", "RepoNotFound")
WRONG_TOKEN = Refusal(401, "Invalid credentials in Authorization header")
FORBIDDEN = Refusal(403, "This token has no access to this resource")
REPO_NOT_FOUND = Refusal(404, "Repository not found", "RepoNotFound")
REVISION_NOT_FOUND = Refusal(404, "Invalid rev id: {}", "RevisionNotFound")
ENTRY_NOT_FOUND = Refusal(404, "Entry not found", "EntryNotFound")
RATE_LIMITED = Refusal(429, "We had to rate limit you")
SERVER_ERROR = Refusal(500, "Internal Error - We're working hard to fix this as soon as possible!")
UNAVAILABLE = Refusal(503, "Service Unavailable")
UNSATISFIABLE = Refusal(416, "The requested range is not satisfiable")
NO_SUCH_PAGE = Refusal(404, "Sorry, we can't find the page you are looking for.")
RESTRICTED = "Access to model {} is restricted"
LOG_IN = "You must have access to it and be authenticated to access it. Please log in."
GATED_STRANGER = Refusal(401, f"{RESTRICTED}. {LOG_IN}", "GatedRepo")
GATED = Refusal(
    403,
    f"{RESTRICTED} and you are not in the authorized list. Visit https://huggingface.co/{{}} to ask for access.",
    "GatedRepo",
)


class Refused(Exception):
    def __init__(self, refusal: Refusal, subject: str = "{}") -> None:
        super().__init__(refusal.message)
        self.reply = refusal.reply(subject)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(CountedFault):
    """What goes wrong with requests for a part.

    Bytes of `cut_after` and `hang_after` count from the start of the answer's body, `flip_at` from the file's start.
    `headers` replace those of the reply.
    A request that hangs goes on when released. Several misfortunes may strike one request.
    """

    part: Part
    path: str = ""  # any part of the request's path and query
    refusal: Refusal | None = None
    cut_after: int | None = None
    reset: bool = False  # how a cut ends: with TCP's RST instead of FIN; what was on its way may be lost
    hang_after: int | None = None
    flip_at: int | None = None
    ignore_range: bool = False
    bytes_per_second: int | None = None
    headers: Headers = ()
    promised_more: int = 0  # bytes that are announced and never sent
    sent_more: int = 0  # bytes after those asked for

    def altered(self, reply: Reply) -> Reply:
        return replace(reply, headers=tuple({**dict(reply.headers), **dict(self.headers)}.items()))

    def ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Split what is sent of a body where something goes wrong; the last range is empty."""
        end = stop if self.cut_after is None else min(start + self.cut_after, stop)
        flip = () if self.flip_at is None else (self.flip_at, self.flip_at + 1)
        hang = () if self.hang_after is None else (start + self.hang_after,)
        yield from pairwise([*sorted({start, end, *(mark for mark in (*flip, *hang) if start < mark < end)}), end])


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
        self._changed = Condition()

    def add(self, request: Request) -> None:
        with self._changed:
            request.beside = sum(other.part == request.part and other.is_under_way for other in self._requests)
            self._requests.append(request)
            self._changed.notify_all()

    def note(self, request: Request, status: int | None = None, sent: int = 0) -> None:
        with self._changed:
            request.status, request.sent = status or request.status, request.sent + sent
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._requests.clear()

    def requests(self, part: Part | None = None) -> tuple[Request, ...]:
        with self._changed:
            return tuple(each for each in self._requests if part in (None, each.part))

    def wait_for(self, condition: Callable[[Request], bool], timeout: float = 10.0) -> Request:
        """Wait for a request, perhaps under way, of which the condition holds; return the first."""
        with self._changed:
            found = self._changed.wait_for(lambda: next(filter(condition, [*self._requests]), None), timeout)
        if found is None:
            raise TimeoutError(f"no such request within {timeout} s among {self._requests}")
        return found


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
        refusal = armed.fault.refusal
        reply = refusal.reply() if refusal else hub.reply(request, ignore_range=armed.fault.ignore_range)
        reply = armed.fault.altered(reply)
        hub.log.note(request, reply.status)
        length = reply.stop - reply.start + armed.fault.promised_more + armed.fault.sent_more
        self.write_head(reply.status, (*reply.headers, ("Content-Length", str(length))))
        try:
            if self.command != "HEAD":
                self._write_body(reply, armed, request)
        finally:
            request.is_under_way = False

    do_HEAD = do_GET

    def _write_body(self, reply: Reply, armed: Armed, request: Request) -> None:
        """Send what the fault lets through, from the disk without a copy in memory."""
        fault = armed.fault
        block = max(1, fault.bytes_per_second // 20) if fault.bytes_per_second else BLOCK
        with opened(reply.body) as body:
            for start, stop in fault.ranges(reply.start, reply.stop):
                if fault.hang_after is not None and start == reply.start + fault.hang_after:
                    self.hang(armed.released)
                for first in range(start, stop, block):
                    size = min(block, stop - first)
                    self.server.hub.log.note(request, sent=size)
                    request.is_under_way = first + size < reply.stop
                    body.seek(first)
                    if first == fault.flip_at:
                        self.connection.sendall(bytes(byte ^ 0xFF for byte in body.read(size)))
                    else:
                        self.connection.sendfile(body, first, size)
                    if fault.bytes_per_second:
                        time.sleep(size / fault.bytes_per_second)
        self.connection.sendall(bytes(fault.sent_more))
        if fault.cut_after is not None or fault.promised_more:
            self.close_connection = True
            if fault.reset:
                reset(self.connection)


def opened(source: bytes | Path) -> io.BytesIO | io.BufferedReader:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes, in memory or on disk, and what git and Git LFS call them."""

    source: bytes | Path
    size: int
    sha256: str
    pointer: bytes | None  # what git itself stores of a file in LFS
    blob_id: str

    @classmethod
    def of(cls, name: str, source: Source) -> Content:
        """Read a file once for its digests; one of Git LFS by its name."""
        if isinstance(source, int):
            return replace(cls.of(name, name.encode()), size=source)
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        with opened(source) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        is_large = PurePosixPath(name).suffix in LFS_SUFFIXES
        data = pointer if is_large else source if isinstance(source, bytes) else source.read_bytes()
        blob_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return cls(source, size, sha256, pointer if is_large else None, blob_id)

    @property
    def etag(self) -> str:
        return self.blob_id if self.pointer is None else self.sha256

    @property
    def listed(self) -> dict[str, Any]:
        lfs = self.pointer and {"sha256": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return {"size": self.size, "blobId": self.blob_id, **({"lfs": lfs} if lfs else {})}


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

    def commit(self, files: Mapping[str, Source | None], branch: str = "main") -> str:
        """Move a branch on with files new, changed or, if None, removed. Return the commit's hash."""
        parent = self.branches.get(branch) or self.branches.get("main") or Commit("", {})
        changed = {name: Content.of(name, source) for name, source in files.items() if source is not None}
        kept = {name: file for name, file in parent.files.items() if name not in files}
        content = dict(sorted({**kept, **changed}.items()))
        names = [parent.hash, self.repo_id, str(len(self.commits)), *(f"{n} {f.blob_id}" for n, f in content.items())]
        commit = Commit(hashlib.sha1("\n".join(names).encode()).hexdigest(), content)
        self.commits[commit.hash] = self.branches[branch] = commit
        return commit.hash

    def at(self, revision: str) -> Commit:
        commit = self.branches.get(revision) or self.commits.get(revision)
        if commit is None:
            raise Refused(REVISION_NOT_FOUND, revision)
        return commit

    def listed(self, commit: Commit, blobs: bool) -> dict[str, Any]:
        """The page `/api/models/...`, with the sizes and digests of files if `blobs`."""
        repo_id = self.repo_id.removeprefix(DATASETS)
        return {
            "id": repo_id,
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
        """The answer to a request that nothing else goes wrong with."""
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
            raise Refused(GATED_STRANGER if token is None else GATED, repo_id)
        return repository

    def _file(self, request: Request, asked_range: str, repo_id: str, revision: str, name: str) -> Reply:
        """Redirect to the CDN for a file in LFS; hand out a small one here."""
        commit = self._readable(request, repo_id).at(revision)
        headers = (("X-Repo-Commit", commit.hash), ("Accept-Ranges", "bytes"))
        file = commit.files.get(name)
        if file is None:
            raise Refused(replace(ENTRY_NOT_FOUND, headers=headers))
        if file.pointer is None:
            return ranged(asked_range, file, headers)
        place = f"{self.cdn_url}/{repo_id}/{file.sha256}/{quote(PurePosixPath(name).name)}?{SIGNED}"
        body = f"Found. Redirecting to {place}".encode()
        linked = (("X-Linked-Size", str(file.size)), ("X-Linked-Etag", f'"{file.sha256}"'))
        named = (("ETag", f'"{file.blob_id}"'), ("Content-Type", "text/plain"))
        return Reply(302, (("Location", place), *headers, *linked, *named), body, 0, len(body))

    def _blob(self, request: Request, path: str, asked_range: str) -> Reply:
        """Hand out a file of the CDN, which knows it by its digest."""
        *owner_and_name, digest, name = path.strip("/").split("/")
        repository = self.repositories.get("/".join(owner_and_name))
        commits = [] if repository is None else [*repository.commits.values()]
        known = {file.sha256: file for commit in commits for file in commit.files.values()}
        if digest not in known or SIGNED not in request.path:
            raise Refused(FORBIDDEN)
        named = ("Content-Disposition", f'attachment; filename="{name}";')
        return ranged(asked_range, known[digest], (("Accept-Ranges", "bytes"), named))


def part_of_hub(path: str) -> Part:
    plain = urlsplit(path).path
    return "api" if plain == SEARCH or API.fullmatch(plain) else "resolve" if RESOLVE.fullmatch(plain) else "other"


def ranged(asked_range: str, file: Content, headers: Headers) -> Reply:
    """A file, or of it what one Range asks for; several ranges count as none."""
    headers = (("Content-Type", "application/octet-stream"), ("ETag", f'"{file.etag}"'), *headers)
    match = RANGE.fullmatch(asked_range)
    if match is None or match[0] == "bytes=-":
        return Reply(200, headers, file.source, 0, file.size)
    first, last = match.groups()
    start = int(first) if first else max(0, file.size - int(last))
    stop = min(file.size, int(last) + 1) if first and last else file.size
    if start >= stop:
        raise Refused(UNSATISFIABLE.with_header("Content-Range", f"bytes */{file.size}"))
    within = ("Content-Range", f"bytes {start}-{stop - 1}/{file.size}")
    return Reply(206, (*headers, within), file.source, start, stop)
