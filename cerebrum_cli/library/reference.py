"""Model references, which text is parsed into, and what the names of model files mean.

    NAME[:QUANT]                            a model by name, as listed by `cerebrum list`
    OWNER/REPO[@REVISION][:QUANT]           a repository on the Hugging Face Hub, at a branch, tag or commit
    https://huggingface.co/OWNER/REPO/resolve/REVISION/FILE.gguf       a file of it
    PATH                                    begins with / ./ ../ or ~, or ends in .gguf
    ollama:NAME[:TAG]                       a model of Ollama

A repository may have the Hub's address before it, and so may its page `tree/REVISION`; a file's page is `blob/...`.
`str()` of a value is a reference that parses to the same value; of a path, if it is absolute or ends in .gguf.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.paths import looks_like_path
from cerebrum_cli.core.text import name_from_stem

HUB = "huggingface.co"
MAIN = "main"  # the default revision
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 1024  # that file systems take, in UTF-8
RepositoryKind = Literal["model", "dataset"]

# Also of a quantization. Without `:` and `/`, which separate the parts of a reference.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
REPO_ID = re.compile(rf"(?!.*(?:--|\.\.)){_PART}/{_PART}")  # `--` stands for the slash in the cache
_HUB_ADDRESS = re.compile(r"(?:https?://)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)
_REPOSITORY = re.compile(r"(?P<repo>[^/@:]+/[^/@:]+)(?:(?:@|/tree/)(?P<revision>[^:]+))?(?::(?P<quantization>.*))?")
_FILE = re.compile(
    r"(?P<repo>[^/]+/[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>.+\.gguf)(?:[?#].*)?", re.IGNORECASE
)
_FORMS = "use NAME[:QUANT], OWNER/REPO[:QUANT], the URL of a .gguf file, or a path"


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
        return bool(REPO_ID.fullmatch(self.name))

    def __str__(self) -> str:
        if self.file:
            return f"https://{HUB}/{self.name}/resolve/{quote(self.revision or MAIN, safe='')}/{quote(self.file)}"
        revision = f"@{self.revision}" if self.revision else ""
        quantization = f":{self.quantization}" if self.quantization else ""
        text = f"{self.name}{revision}{quantization}"
        return f"{HUB}/{text}" if looks_like_path(text) or _HUB_ADDRESS.match(text) else text


@frozen
class OllamaReference:
    """A model of Ollama, by its name there."""

    name: str

    def __str__(self) -> str:
        return f"{OLLAMA}{self.name}"


Reference = ModelReference | OllamaReference | Path
OLLAMA = "ollama:"
DEFAULT_TAG = ":latest"  # Ollama's


def parse_reference(text: str, endpoint: str | None = None) -> Reference:
    """Parse a reference; `endpoint` is the URL of another Hub. Raises UsageError for a text that is no reference."""
    text = text.strip()
    if text.startswith(OLLAMA):
        return OllamaReference(text.removeprefix(OLLAMA).removesuffix(DEFAULT_TAG))
    if endpoint and text.startswith(other_hub := f"{endpoint.rstrip('/')}/"):
        return _parse_hub_path(text.removeprefix(other_hub))
    if address := _HUB_ADDRESS.match(text):
        return _parse_hub_path(text[address.end() :])
    if "://" in text:
        raise UsageError(
            "can only pull from the Hugging Face Hub",
            "download the file, then: cerebrum pull PATH  (for another Hub, set HF_ENDPOINT to its URL)",
        )
    if looks_like_path(text) and "\0" not in text:
        return Path(text)
    if "/" in text:
        return _parse_hub_path(text)
    name, colon, quantization = text.partition(":")
    if not MODEL_NAME.fullmatch(name):
        raise UsageError(f"{text!r} is not a model reference", _FORMS)
    if colon:
        _require_quantization(quantization)
    return ModelReference(name, quantization or None)


def is_storable(name: str) -> bool:
    """Whether a file of a repository can be stored under its path: each name in it may have 255 bytes."""
    if not is_safe_path(name) or len(name.encode()) > MAX_PATH_BYTES:
        return False
    return all(len(part.encode()) <= MAX_NAME_BYTES for part in name.split("/"))


def is_safe_path(name: str) -> bool:
    """Whether the name of a file or revision in a repository is safe as a path below a local directory."""
    return name.isprintable() and "\\" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def _parse_hub_path(path: str) -> ModelReference:
    """Parse what follows the address of the Hub."""
    problem = f"{path!r} does not name a repository of the Hub, or a .gguf file in one"
    if match := _FILE.fullmatch(path):
        reference = ModelReference(match["repo"], None, unquote(match["file"]), unquote(match["revision"]))
    elif match := _REPOSITORY.fullmatch(path.rstrip("/")):
        reference = ModelReference(match["repo"], match["quantization"], None, match["revision"])
    else:
        raise UsageError(problem, _FORMS)
    stored = filter(None, (reference.file, reference.revision))  # in paths below the cache
    if not reference.is_on_hub or not all(map(is_safe_path, stored)):
        raise UsageError(problem, _FORMS)
    _require_quantization(reference.quantization)
    return reference


def _require_quantization(text: str | None) -> None:
    if text is not None and not MODEL_NAME.fullmatch(text):
        raise UsageError(f"{text!r} is not a quantization", "use one such as :Q4_K_M")


# Files of a repository.

_SUFFIX = ".gguf"
# As llama.cpp names parts (llama_split_path): five digits, starting at 1.
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
# Quantization at the end of a name, as spelled by llama-quantize and by repositories, or else within it. Its length is
# limited, and nothing of it is tried twice, so that a name of any length is searched in linear time.
_LABEL = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]{1,24}+){0,8}+|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)"
    r"(?:-[\d.]{1,16}bpw)?)"
    r"(?:[-._]imat(?:rix)?)?$",
    re.IGNORECASE,
)
_INNER_LABEL = re.compile(r"[-._]((?:UD-)?I?Q[1-8]_[A-Z0-9_]{1,64}+)(?=[-.])", re.IGNORECASE)
_PART_OF_OTHERS = re.compile(r"(?:^|[-._])mmproj(?:[-._]|$)|^mtp-", re.IGNORECASE)  # projectors, heads that draft
# What stands in the names of files that accompany a model, and in those of some models.
_COMPANION = re.compile(
    r"(?:^|[-._/])(?:mtp|nextn|eagle-?[23]?|dflash|dspark|medusa|specul\w+|draft(?:er)?|assistant|vocoder|wavtokenizer"
    r"|projector|mmproj|imatrix|lora|adapter|embeddings?|reranker|vae|text[-_]encoder|vocab)(?:[-._/]|$)",
    re.IGNORECASE,
)
_IMATRIX = re.compile(r"(?:^|[-._])imatrix(?:[-._]|$)", re.IGNORECASE)  # statistics, unless a quantization follows


class Variant(NamedTuple):
    """A model of a repository: its quantization (or the file's stem), and its files in order."""

    quantization: str
    files: tuple[str, ...]


def variants(files: Iterable[str]) -> tuple[Variant, ...]:
    """Group the files of a repository into models; a split file that lacks a part is left out."""
    return complete_variants(filter(is_model, files))


def complete_variants(files: Iterable[str]) -> tuple[Variant, ...]:
    """Group any files, each a model or a part of one, into models; a split file that lacks a part is left out."""
    names = set(files)
    present = Counter(_whole(name) for name in names)
    firsts = (name for name in names if _parse_split(name)[1] == 1)
    # Names of parts are compared only if there are enough: a single file may state that it is one of 99,999.
    models = [variant_of(name) for name in firsts if present[_whole(name)] >= _parse_split(name)[2]]
    return tuple(sorted((model for model in models if names.issuperset(model.files)), key=lambda model: model.files))


def lacking_part(files: Iterable[str], quantization: str | None) -> str | None:
    """A part that the files of a split model in a quantization lack."""
    names = set(files)
    for name in sorted(filter(is_model, names)):
        if quantization is None or same_quantization(quantization_of(name), quantization):
            for part in parts_of(name):
                if part not in names:
                    return part
    return None


def _whole(name: str) -> tuple[str, int, str]:
    """What the names of the parts of one model have in common."""
    stem, _, total = _parse_split(name)
    return stem, total, name[-len(_SUFFIX) :]


def variant_of(file: str) -> Variant:
    """The model that a file belongs to, whether its other parts are there or not."""
    return Variant(quantization_of(file), parts_of(file))


def is_model(file: str) -> bool:
    stem, part, total = _parse_split(file)
    stem = PurePosixPath(stem).name
    if not stem or not file.lower().endswith(_SUFFIX) or not 1 <= part <= total:
        return False
    if _IMATRIX.search(stem) and not _LABEL.search(stem):
        return False
    return not _PART_OF_OTHERS.search(stem)


def likely_models(models: Sequence[Variant], quantization: str | None) -> list[Variant]:
    """The models of a repository by their names: files named like companions only if no others are meant."""
    likely = [model for model in models if not _COMPANION.search(model.files[0])]
    return likely if in_quantization(likely, quantization) else list(models)


def in_quantization(models: Iterable[Variant], quantization: str | None) -> list[Variant]:
    """The models in a quantization; all if None."""
    return [model for model in models if quantization is None or same_quantization(model.quantization, quantization)]


def parts_of(name: str) -> tuple[str, ...]:
    """File names of a model, from the name of one of its files: itself, or all parts of a split file."""
    stem, part, total = _parse_split(name)
    if total == 1 or not 1 <= part <= total:
        return (name,)
    return tuple(f"{stem}-{number:05}-of-{total:05}{name[-len(_SUFFIX) :]}" for number in range(1, total + 1))


def quantization_of(file: str) -> str:
    """Quantization in a file's name or in that of a directory; else its stem in characters a reference allows."""
    return _label_of(file) or name_from_stem(PurePosixPath(_parse_split(file)[0]).name) or "model"


def is_labeled(model: Variant) -> bool:
    """Whether the names of a model state its quantization."""
    return _label_of(model.files[0]) is not None


def _label_of(file: str) -> str | None:
    for name in reversed(PurePosixPath(_parse_split(file)[0]).parts):
        if label := _LABEL.search(name) or _INNER_LABEL.search(name):
            return label[1].upper().replace("BPW", "bpw")
    return None


def same_quantization(first: str, second: str) -> bool:
    """Whether two spellings mean the same quantization.

    Q4_K_S, q4_k_s and Q4_KS do, F16 and FP16, and IQ4_XS and IQ4_XS-4.05bpw.
    """
    spellings = [text.upper().replace("_", "").replace("FP", "F") for text in (first, second)]
    short, long = sorted(spellings, key=len)
    return short == long or bool(re.fullmatch(r"-[\d.]+BPW", long.removeprefix(short)))


def _parse_split(file: str) -> tuple[str, int, int]:
    """Split a file name into stem, part number and number of parts; 1 of 1 for a file that is not split."""
    stem = file[: -len(_SUFFIX)] if file.lower().endswith(_SUFFIX) else file
    if match := _SPLIT.search(stem):
        return stem[: match.start()], int(match[1]), int(match[2])
    return stem, 1, 1
