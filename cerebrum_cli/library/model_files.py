"""The files of a repository as models: what their names state."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from cerebrum_cli.core.text import name_from_stem

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
