"""Model references, which text is parsed into, and what the names of model files state.

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
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import quote, unquote

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import as_path, looks_like_path
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import name_from_stem

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


_SUFFIX = ".gguf"
# Quantization at the end of a name, as spelled by llama-quantize and by repositories, or else within it. Its length is
# limited, and nothing of it is tried twice, so that a name of any length is searched in linear time.
_LABEL = (
    r"(?i)(?:^|[-._])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]{1,24}+){0,8}+|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)"
    r"(?:-[\d.]{1,16}bpw)?)(?:[-._]imat(?:rix)?)?$"
)
_INNER_LABEL = r"(?i)[-._]((?:UD-)?I?Q[1-8]_[A-Z0-9_]{1,64}+)(?=[-.])"
_PART_OF_OTHERS = r"(?i)(?:^|[-._])mmproj(?:[-._]|$)|^mtp-"  # projectors, heads that draft
_IMATRIX = r"(?i)(?:^|[-._])imatrix(?:[-._]|$)"  # statistics, unless a quantization follows
# What stands in the names of files that accompany a model, and in those of some models.
_COMPANION = (
    r"(?i)(?:^|[-._/])(?:mtp|nextn|eagle-?[23]?|dflash|dspark|medusa|specul\w+|draft(?:er)?|assistant|vocoder"
    r"|wavtokenizer|projector|mmproj|imatrix|lora|adapter|embeddings?|reranker|vae|text[-_]encoder|vocab)(?:[-._/]|$)"
)


class Variant(NamedTuple):
    """A model of a repository: its quantization (or the file's stem), and its files in order."""

    quantization: str
    files: tuple[str, ...]


def variants(files: Iterable[str]) -> tuple[Variant, ...]:
    """Group the files of a repository into models; a split file that lacks a part is left out."""
    return complete_variants(filter(is_model, files))


def complete_variants(files: Iterable[str]) -> tuple[Variant, ...]:
    """Group any files, each a model or a part of one, into models; a split file that lacks a part is left out."""
    parts = defaultdict(list)
    for name in sorted(set(files)):
        stem, _, total = _parse_split(name)
        parts[(stem, total, name[-len(_SUFFIX) :]) if total > 1 else name].append(name)
    complete = [names for names in parts.values() if len(names) == _parse_split(names[0])[2]]
    return tuple(sorted((variant_of(names[0]) for names in complete), key=lambda model: model.files))


def lacking_part(files: Iterable[str], quantization: str | None) -> str | None:
    """A part that the files of a split model in a quantization lack."""
    names = set(files)
    for name in sorted(filter(is_model, names)):
        if quantization is None or same_quantization(quantization_of(name), quantization):
            for part in parts_of(name):
                if part not in names:
                    return part
    return None


def variant_of(file: str) -> Variant:
    """The model that a file belongs to, whether its other parts are there or not."""
    return Variant(quantization_of(file), parts_of(file))


def is_model(file: str) -> bool:
    stem, part, total = _parse_split(file)
    stem = PurePosixPath(stem).name
    if not stem or not file.lower().endswith(_SUFFIX) or not 1 <= part <= total:
        return False
    if re.search(_IMATRIX, stem) and not re.search(_LABEL, stem):
        return False
    return not re.search(_PART_OF_OTHERS, stem)


def likely_models(models: Sequence[Variant], quantization: str | None) -> list[Variant]:
    """The models of a repository by their names: files named like companions only if no others are meant."""
    likely = [model for model in models if not re.search(_COMPANION, model.files[0])]
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
        if label := re.search(_LABEL, name) or re.search(_INNER_LABEL, name):
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
    """Split a file name into stem, part number and number of parts; 1 of 1 for a file that is not split.

    Parts are named as by llama.cpp's `llama_split_path`: five digits, starting at 1.
    """
    stem = file[: -len(_SUFFIX)] if file.lower().endswith(_SUFFIX) else file
    if match := re.search(r"-(\d{5})-of-(\d{5})$", stem):
        return stem[: match.start()], int(match[1]), int(match[2])
    return stem, 1, 1
