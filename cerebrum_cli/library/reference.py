"""Model references, which text is parsed into.

    NAME[:QUANT]                            a model by name, as listed by `cerebrum list`
    OWNER/REPO[@REVISION][:QUANT]           a repository on the Hugging Face Hub, at a branch, tag or commit
    https://huggingface.co/OWNER/REPO/resolve/REVISION/FILE.gguf       a file of it
    PATH                                    begins with / ./ ../ or ~, or ends in .gguf
    ollama:NAME[:TAG]                       a model of Ollama

A repository may have the Hub's address before it, and so may its page `tree/REVISION`; a file's page is `blob/...`.
`str()` of a value is a reference that parses to the same value; of a path, if it is absolute or ends in .gguf.
Patterns are compiled when they are used: most commands parse one name.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import as_path, looks_like_path
from cerebrum_cli.core.frozen import frozen

HUB = "huggingface.co"
MAIN = "main"  # the default revision
OLLAMA = "ollama:"
DEFAULT_TAG = ":latest"  # Ollama's
_HUB_ADDRESSES = tuple(f"{scheme}{host}/" for scheme in ("", "https://", "http://") for host in (HUB, "hf.co"))
_REPOSITORY = r"(?P<repo>[^/@:]+/[^/@:]+)(?:(?:@|/tree/)(?P<revision>[^:]+))?(?::(?P<quantization>.*))?"
_FILE = r"(?i)(?P<repo>[^/]+/[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>.+\.gguf)(?:[?#].*)?"
_FORMS = "use NAME[:QUANT], OWNER/REPO[:QUANT], the URL of a .gguf file, or a path"


def is_model_name(text: str) -> bool:
    """Whether a text may name a model, or a quantization: without `:` and `/`, which separate parts of a reference."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text))


def is_repo_id(text: str) -> bool:
    """Whether a text is OWNER/NAME; both without `--`, which stands for the slash in the cache."""
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
    return bool(re.fullmatch(rf"{part}/{part}", text)) and "--" not in text and ".." not in text


def is_safe_path(name: str) -> bool:
    """Whether the name of a file or revision in a repository is safe as a path below a local directory."""
    return name.isprintable() and "\\" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


@frozen
class ModelReference:
    """A model by its name or its repository, in one quantization or in the best fit; or one file of a repository.

    A name is that of an installed model or of one in the catalog.
    """

    name: str
    quantization: str | None = None
    file: str | None = None
    revision: str | None = None

    @property
    def is_on_hub(self) -> bool:
        return is_repo_id(self.name)

    def __str__(self) -> str:
        if self.file:
            return f"https://{HUB}/{self.name}/resolve/{quote(self.revision or MAIN, safe='')}/{quote(self.file)}"
        revision = f"@{self.revision}" if self.revision else ""
        quantization = f":{self.quantization}" if self.quantization else ""
        text = f"{self.name}{revision}{quantization}"
        means_other = looks_like_path(text) or _hub_path(text) is not None
        return f"{HUB}/{text}" if means_other else text


@frozen
class OllamaReference:
    """A model of Ollama, by its name there."""

    name: str

    def __str__(self) -> str:
        return f"{OLLAMA}{self.name}"


Reference = ModelReference | OllamaReference | Path


def parse_reference(text: str, endpoint: str | None = None) -> Reference:
    """Parse a reference; `endpoint` is the URL of another Hub. Raises UsageError for a text that is no reference."""
    text = text.strip()
    if text.startswith(OLLAMA):
        return OllamaReference(text.removeprefix(OLLAMA).removesuffix(DEFAULT_TAG))
    path = _hub_path(text, endpoint)
    if path is None and "://" in text:
        raise UsageError(
            "can only pull from the Hugging Face Hub",
            "download the file, then: cerebrum pull PATH  (for another Hub, set HF_ENDPOINT to its URL)",
        )
    if path is None and looks_like_path(text) and "\0" not in text:
        return as_path(text)
    if path is None and "/" not in text:
        reference = _parse_name(text)
    else:
        reference = _parse_hub_path(text if path is None else path)
    if reference.quantization is not None and not is_model_name(reference.quantization):
        raise UsageError(f"{reference.quantization!r} is not a quantization", "use one such as :Q4_K_M")
    return reference


def _parse_name(text: str) -> ModelReference:
    name, colon, quantization = text.partition(":")
    if not is_model_name(name):
        raise UsageError(f"{text!r} is not a model reference", _FORMS)
    return ModelReference(name, quantization if colon else None)


def _hub_path(text: str, endpoint: str | None = None) -> str | None:
    """What follows the address of the Hub in a text that begins with it."""
    addresses = (*_HUB_ADDRESSES, f"{endpoint.rstrip('/')}/") if endpoint else _HUB_ADDRESSES
    for address in addresses:
        if text[: len(address)].lower() == address.lower():
            return text[len(address) :]
    return None


def _parse_hub_path(path: str) -> ModelReference:
    reference = ModelReference("")
    if match := re.fullmatch(_FILE, path):
        reference = ModelReference(match["repo"], file=unquote(match["file"]), revision=unquote(match["revision"]))
    elif match := re.fullmatch(_REPOSITORY, path.rstrip("/")):
        reference = ModelReference(match["repo"], match["quantization"], revision=match["revision"])
    stored = filter(None, (reference.file, reference.revision))  # in paths below the cache
    if not reference.is_on_hub or not all(map(is_safe_path, stored)):
        raise UsageError(f"{path!r} does not name a repository of the Hub, or a .gguf file in one", _FORMS)
    return reference
