"""A Hugging Face Hub on loopback, for the real client: repositories, their commits, and a CDN on another port.

A dataset is a repository whose id has the prefix DATASETS here, as its address has on the Hub.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_exchange import Armed, Fault, Headers, Listener, Log, Part, Refusal, Reply, Request, opened

DATASETS = "datasets/"
LFS_SUFFIXES = {".gguf", ".safetensors", ".bin", ".parquet"}  # in a new repository's .gitattributes, in part
API = re.compile(r"/api/(?:models/|(datasets/))([^/]+/[^/]+)(?:/revision/([^/]+))?")
RESOLVE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
SIGNED = "Expires=3600&Signature=signed"
HEALTHY = Armed(Fault(part="other"))

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
GATED_STRANGER = Refusal(
    401,
    "Access to model {} is restricted. You must have access to it and be authenticated to access it. Please log in.",
    "GatedRepo",
)
GATED = Refusal(
    403,
    "Access to model {} is restricted and you are not in the authorized list. "
    "Visit https://huggingface.co/{} to ask for access.",
    "GatedRepo",
)


class Refused(Exception):
    """The Hub's answer to a request is a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes, in memory or on disk, and what git and Git LFS call them."""

    source: bytes | Path
    size: int
    sha256: str
    pointer: bytes | None  # what git itself stores of a file in LFS
    blob_id: str

    @classmethod
    def of(cls, name: str, source: bytes | Path) -> Content:
        """Read a file once for its digests; one of Git LFS by its name."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        with opened(source) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if PurePosixPath(name).suffix in LFS_SUFFIXES:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
            return cls(source, size, sha256, pointer, _blob_id(pointer))
        return cls(source, size, sha256, None, _blob_id(source if isinstance(source, bytes) else source.read_bytes()))

    @property
    def etag(self) -> str:
        return self.blob_id if self.pointer is None else self.sha256

    @property
    def lfs(self) -> dict[str, Any]:
        """What the API says of a file in LFS."""
        if self.pointer is None:
            return {}
        return {"lfs": {"sha256": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}}


@dataclass(frozen=True, slots=True)
class Commit:
    """The files of a repository at one time."""

    hash: str
    files: Mapping[str, Content]

    def siblings(self, blobs: bool) -> list[dict[str, Any]]:
        """Return the files as `/api/models/...` lists them, with their sizes and digests if `blobs`."""
        return [
            {"rfilename": name, **({"size": file.size, "blobId": file.blob_id, **file.lfs} if blobs else {})}
            for name, file in self.files.items()
        ]


@dataclass(slots=True)
class Repository:
    """A repository: who may read it, and its commits under their branches and hashes."""

    repo_id: str
    private: bool = False
    gated: Literal[False, "auto", "manual"] = False
    readers: tuple[str, ...] = ()  # tokens, for what is not public
    branches: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes | Path | None], branch: str = "main") -> str:
        """Move a branch on with files new, changed or, if None, removed. Return the commit's hash."""
        parent = self.branches.get(branch) or self.branches.get("main") or Commit("", {})
        changed = {name: Content.of(name, source) for name, source in files.items() if source is not None}
        kept = {name: file for name, file in parent.files.items() if name not in files}
        content = dict(sorted({**kept, **changed}.items()))
        said = [parent.hash, self.repo_id, str(len(self.commits)), *(f"{n} {f.blob_id}" for n, f in content.items())]
        commit = Commit(hashlib.sha1("\n".join(said).encode()).hexdigest(), content)
        self.commits[commit.hash] = self.branches[branch] = commit
        return commit.hash

    def at(self, revision: str) -> Commit:
        """Return the commit of a branch or of a whole hash."""
        commit = self.branches.get(revision) or self.commits.get(revision)
        if commit is None:
            raise Refused(REVISION_NOT_FOUND.about(revision))
        return commit

    def about(self, commit: Commit, blobs: bool) -> dict[str, Any]:
        """Return what `/api/models/...` says."""
        repo_id = self.repo_id.removeprefix(DATASETS)
        return {
            "id": repo_id,
            **({"modelId": repo_id} if repo_id == self.repo_id else {}),
            "author": repo_id.split("/")[0],
            "sha": commit.hash,
            "lastModified": "2026-01-02T03:04:05.000Z",
            "private": self.private,
            "gated": self.gated,
            "disabled": False,
            "tags": ["gguf", "region:us", "license:apache-2.0"],
            "cardData": {"license": "apache-2.0"},
            "siblings": commit.siblings(blobs),
        }


class HubServer:
    """A Hub and its CDN, each on a port of its own, and what a test holds of them.

    `tokens` are those the Hub knows; any other is refused everywhere.
    """

    def __init__(self, *, tokens: tuple[str, ...] = ()) -> None:
        self.tokens = tokens
        self.log = Log()
        self.repositories: dict[str, Repository] = {}
        self._armed: list[Armed] = []
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

    def repository(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path],
        *,
        private: bool = False,
        gated: Literal[False, "auto", "manual"] = False,
        readers: tuple[str, ...] = (),
    ) -> Repository:
        """Create a repository with a first commit on `main`. `readers` are the tokens that open what is not public."""
        repository = Repository(repo_id, private, gated, readers)
        repository.commit(files)
        self.repositories[repo_id] = repository
        return repository

    def arm(self, fault: Fault) -> Armed:
        """Put a fault in place. Of several that fit a request, the one armed first strikes."""
        armed = Armed(fault)
        self._armed.append(armed)
        return armed

    def struck(self, request: Request) -> Armed:
        """Return the fault that strikes a request."""
        return next((armed for armed in self._armed if armed.strike(request)), HEALTHY)

    def environment(self, home: Path) -> dict[str, str]:
        """Return what a process must have in its environment to meet this Hub and no other, caching in `home`."""
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

    def reply(self, request: Request) -> Reply:
        """Return the answer to a request that nothing goes wrong with."""
        url = urlsplit(request.path)
        try:
            if request.part == "cdn":
                return self._blob(request, url.path)
            if match := RESOLVE.fullmatch(url.path):
                return self._file(request, *map(unquote, match.groups()))
            if match := API.fullmatch(url.path):
                return self._page(request, match, parse_qs(url.query))
            raise Refused(NO_SUCH_PAGE)
        except Refused as refused:
            return refused.refusal.reply

    def _readable(self, request: Request, repo_id: str) -> Repository:
        """Return the repository if the client may know of it, and read it if it wants a file."""
        repository, token = self.repositories.get(repo_id), request.token
        if token is not None and token not in self.tokens:
            raise Refused(WRONG_TOKEN)
        if repository is None or (repository.private and token not in repository.readers):
            raise Refused(STRANGER if token is None else REPO_NOT_FOUND)
        if repository.gated and request.part == "resolve" and token not in repository.readers:
            raise Refused((GATED_STRANGER if token is None else GATED).about(repo_id))
        return repository

    def _page(self, request: Request, match: re.Match[str], query: Mapping[str, list[str]]) -> Reply:
        repository = self._readable(request, (match[1] or "") + unquote(match[2]))
        commit = repository.at(unquote(match[3] or "main"))
        return Reply.telling(repository.about(commit, blobs=query.get("blobs") == ["true"]))

    def _file(self, request: Request, repo_id: str, revision: str, name: str) -> Reply:
        """Redirect to the CDN for a file in LFS; hand out a small one here."""
        commit = self._readable(request, repo_id).at(revision)
        said = (("X-Repo-Commit", commit.hash), ("Accept-Ranges", "bytes"))
        file = commit.files.get(name)
        if file is None:
            raise Refused(replace(ENTRY_NOT_FOUND, headers=said))
        if file.pointer is None:
            return ranged(request, file.source, file.size, file.etag, said)
        place = f"{self.cdn_url}/{repo_id}/{file.sha256}/{quote(PurePosixPath(name).name)}?{SIGNED}"
        body = f"Found. Redirecting to {place}".encode()
        linked = (("X-Linked-Size", str(file.size)), ("X-Linked-Etag", f'"{file.sha256}"'))
        headers = (("Location", place), *said, *linked, ("ETag", f'"{file.blob_id}"'), ("Content-Type", "text/plain"))
        return Reply(302, headers, body, 0, len(body))

    def _blob(self, request: Request, path: str) -> Reply:
        """Hand out a file of the CDN, which knows it by its digest."""
        *owner_and_name, digest, name = path.strip("/").split("/")
        repository = self.repositories.get("/".join(owner_and_name))
        commits = [] if repository is None else [*repository.commits.values()]
        known = {file.sha256: file for commit in commits for file in commit.files.values()}
        if digest not in known or SIGNED not in request.path:
            raise Refused(FORBIDDEN)
        named = ("Content-Disposition", f'attachment; filename="{name}";')
        file = known[digest]
        return ranged(request, file.source, file.size, file.etag, (("Accept-Ranges", "bytes"), named))


def part_of_hub(path: str) -> Part:
    """Return which part of the Hub a path belongs to."""
    plain = urlsplit(path).path
    return "api" if API.fullmatch(plain) else "resolve" if RESOLVE.fullmatch(plain) else "other"


def ranged(request: Request, body: bytes | Path, size: int, etag: str, headers: Headers) -> Reply:
    """Return a file, or of it what the request's one Range asks for; several ranges count as none."""
    headers = (("Content-Type", "application/octet-stream"), ("ETag", f'"{etag}"'), *headers)
    match = RANGE.fullmatch(request.range or "")
    if match is None or match[0] == "bytes=-":
        return Reply(200, headers, body, 0, size)
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise Refused(UNSATISFIABLE.with_header("Content-Range", f"bytes */{size}"))
    within = ("Content-Range", f"bytes {start}-{stop - 1}/{size}")
    return Reply(206, (*headers, within), body, start, stop)


def _blob_id(data: bytes) -> str:
    """Return what git calls a file's bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
