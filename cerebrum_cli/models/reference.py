"""Model references: parse text into a value.

    NAME[:QUANT]                            a model by name, as listed by `cerebrum list`
    [hf.co/]OWNER/REPO[:QUANT]              a repository on the Hugging Face Hub
    https://huggingface.co/OWNER/REPO/resolve/REVISION/FILE.gguf       one file of it (`blob` likewise)
    PATH                                    begins with / ./ ../ or ~, or ends in .gguf
    ollama:NAME[:TAG]                       a model in the store of Ollama
    lmstudio:NAME[:QUANT]                   a model in the store of LM Studio

`str()` of a value is a reference that parses to the same value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from cerebrum_cli.core.errors import UsageError

HUB = "huggingface.co"
HUB_HOSTS = (HUB, "hf.co", f"www.{HUB}")
MAIN = "main"  # the default revision
RepositoryKind = Literal["model", "dataset"]

# Without `:` and `/`, which separate the parts of a reference.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
REPO_ID = re.compile(rf"(?!.*(?:--|\.\.)){_PART}/{_PART}")  # `--` stands for the slash in the cache
_QUANTIZATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FILE_QUERY = "show_file_info"  # query parameter of the Hub's GGUF viewer
_FILE_VIEWS = ("resolve", "blob", "raw")
_FORMS = "use NAME[:QUANT], OWNER/REPO[:QUANT], the URL of a .gguf file, or a path"


@dataclass(frozen=True, slots=True)
class NameReference:
    """A model by its name, installed or in the catalog; or with a store's prefix, by its name there."""

    name: str
    quantization: str | None = None

    def __str__(self) -> str:
        return f"{self.name}:{self.quantization}" if self.quantization else self.name


@dataclass(frozen=True, slots=True)
class HubReference:
    """A model in a repository on the Hub: a quantization, one file of a revision, or the best fit."""

    repo_id: str
    quantization: str | None = None
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        if self.file is None and self.revision is None:
            plain = f"{self.repo_id}:{self.quantization}" if self.quantization else self.repo_id
            return f"hf.co/{plain}" if looks_like_path(plain) or _starts_with_host(plain) else plain
        view = "tree" if self.file is None else "resolve"
        address = f"https://{HUB}/{self.repo_id}/{view}/{quote(self.revision or MAIN, safe='')}"
        if self.file is None:
            return f"{address}:{self.quantization}" if self.quantization else address
        return f"{address}/{quote(self.file)}"


@dataclass(frozen=True, slots=True)
class PathReference:
    path: Path

    def __str__(self) -> str:
        text = str(self.path)
        return text if looks_like_path(text) and not _starts_with_host(text) else f"./{text}"


Reference = NameReference | HubReference | PathReference
STORES = {"ollama": "Ollama", "lmstudio": "LM Studio"}  # titles of the tools by the prefix of their references
DEFAULT_TAG = ":latest"  # Ollama's


def parse_reference(text: str, endpoint: str | None = None) -> Reference:
    """Parse a reference; `endpoint` is the URL of another Hub. Raises UsageError for a text that is no reference."""
    if names_stored(text):
        return NameReference(text.removesuffix(DEFAULT_TAG))
    scheme, slashes, path = text.partition("://")
    if slashes:
        return _parse_url(text, scheme, path, endpoint)
    if _starts_with_host(text):
        return _parse_hub_path(text, urlsplit(f"https://{text}").path.removeprefix("/"))
    if looks_like_path(text):
        if "\0" in text:
            raise UsageError(f"{text!r} is not a path", _FORMS)
        return PathReference(Path(text))
    name, quantization = _split_quantization(text)
    if REPO_ID.fullmatch(name):
        return HubReference(name, quantization)
    if MODEL_NAME.fullmatch(name):
        return NameReference(name, quantization)
    raise UsageError(f"{text!r} is not a model reference", _FORMS)


def names_stored(text: str) -> bool:
    """Whether a reference names a model in the store of another tool."""
    store, _, name = text.partition(":")
    return store in STORES and bool(name)


def looks_like_path(text: str) -> bool:
    """Whether a reference can only be a path: it ends in .gguf, or begins as paths do."""
    return text in (".", "..") or text.lower().endswith(".gguf") or text.startswith(("/", "./", "../", "~"))


def is_safe_path(name: str) -> bool:
    """Whether the name of a file or revision in a repository is safe as a path below a local directory."""
    return name.isprintable() and "\\" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def _starts_with_host(text: str) -> bool:
    return text.partition("/")[0].lower() in HUB_HOSTS and "/" in text


def _parse_url(text: str, scheme: str, address: str, endpoint: str | None) -> HubReference:
    if scheme.lower() == "hf":
        return _parse_hub_path(text, address)
    try:
        parts, own_host = urlsplit(text), urlsplit(endpoint or "").netloc.lower()
    except ValueError as error:
        raise UsageError(f"{text!r} is not a URL: {error}", _FORMS) from error
    if scheme.lower() not in ("http", "https") or parts.netloc.lower() not in (*HUB_HOSTS, own_host):
        raise UsageError(
            f"{parts.hostname or ''!r}: can only pull from the Hugging Face Hub",
            "download the file, then: cerebrum pull PATH  (for another Hub, set HF_ENDPOINT to its URL)",
        )
    path = parts.path.removeprefix("/")
    shown = parse_qs(parts.query).get(_FILE_QUERY, [""])[0]
    if shown and not any(f"/{view}/" in parts.path for view in _FILE_VIEWS):
        path = f"{'/'.join(path.split('/')[:2])}/resolve/{MAIN}/{quote(shown)}"
    return _parse_hub_path(text, path)


def _parse_hub_path(text: str, path: str) -> HubReference:
    """Parse what follows the host: OWNER/REPO[:QUANT], or a file or tree of a revision."""
    parts = path.rstrip("/").split("/", 4)
    owner, repo, view, revision, file = parts + [""] * (5 - len(parts))
    quantization = None
    if not view:
        repo, quantization = _split_quantization(repo)
    repo_id = f"{owner}/{repo}"
    if not REPO_ID.fullmatch(repo_id):
        raise UsageError(f"{text!r} does not name a repository", f"a repository is OWNER/REPO; {_FORMS}")
    if not view:
        return HubReference(repo_id, quantization)
    if view == "tree" and revision and not file:
        revision, quantization = _split_quantization(revision)
        return HubReference(repo_id, quantization, revision=_unquote(text, revision))
    if view in _FILE_VIEWS and revision and file.lower().endswith(".gguf"):
        return HubReference(repo_id, file=_unquote(text, file), revision=_unquote(text, revision))
    raise UsageError(
        f"{text!r} is not the URL of a .gguf file on the Hub",
        f"use https://{HUB}/{repo_id}/resolve/{MAIN}/FILE.gguf, or {repo_id} for the best fit",
    )


def _split_quantization(text: str) -> tuple[str, str | None]:
    name, colon, quantization = text.partition(":")
    if colon and not _QUANTIZATION.fullmatch(quantization):
        raise UsageError(f"{text!r} has no quantization after the colon", "add one, such as :Q4_K_M")
    return name, quantization or None


def _unquote(text: str, part: str) -> str:
    """Decode the escapes in a URL's file or revision, which will become a path below a local directory."""
    try:
        unquoted = unquote(part, errors="strict")
    except UnicodeDecodeError:
        unquoted = ""
    if not is_safe_path(unquoted):
        raise UsageError(f"{text!r} is not a URL of the Hub", _FORMS)
    return unquoted
