"""Variants of a model in a repository: one per quantization, with the parts of a split file grouped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

_SUFFIX = ".gguf"
# As llama.cpp names parts (llama_split_path): five digits, starting at 1.
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
# Quantization at the end of a file name, as spelled by llama-quantize and by repositories, or else within it.
_LABEL = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?:[-._]imat(?:rix)?)?$",
    re.IGNORECASE,
)
_INNER_LABEL = re.compile(r"[-._]((?:UD-)?I?Q[1-8]_[A-Z0-9_]+)(?=[-.])", re.IGNORECASE)
_PART_OF_OTHERS = re.compile(r"(?:^|[-._])mmproj(?:[-._]|$)|^mtp-", re.IGNORECASE)  # projectors, heads that draft
_IMATRIX = re.compile(r"(?:^|[-._])imatrix(?:[-._]|$)", re.IGNORECASE)  # statistics, unless a quantization follows


class Variant(NamedTuple):
    """A model of a repository: its quantization (or the file's stem), and its files in order."""

    quantization: str
    files: tuple[str, ...]


def variants(files: Iterable[str]) -> tuple[Variant, ...]:
    """Group the files of a repository into models; a split file that lacks a part is left out."""
    models: dict[tuple[str, ...], dict[int, str]] = {}
    for file in sorted(files):
        if is_model(file):
            models.setdefault(parts_of(file), {})[_parse_split(file)[1]] = file
    return tuple(
        Variant(quantization_of(parts[0]), parts) for parts, numbered in models.items() if len(numbered) == len(parts)
    )


def is_model(file: str) -> bool:
    stem, part, total = _parse_split(file)
    stem = PurePosixPath(stem).name
    is_auxiliary = _PART_OF_OTHERS.search(stem) or (_IMATRIX.search(stem) and not _LABEL.search(stem))
    return (
        file.lower().endswith(_SUFFIX)
        and bool(stem)
        and 1 <= part <= (1 if total is None else total)
        and not is_auxiliary
    )


def parts_of(name: str) -> tuple[str, ...]:
    """File names of a model, from the name of one of its files: itself, or all parts of a split file."""
    stem, part, total = _parse_split(name)
    if total is None or not 1 <= part <= total:
        return (name,)
    return tuple(f"{stem}-{number:05}-of-{total:05}{name[-len(_SUFFIX) :]}" for number in range(1, total + 1))


def is_part(name: str) -> bool:
    return _parse_split(name)[2] is not None


def quantization_of(file: str) -> str:
    """Quantization in a file name, in capitals; else its stem in characters a reference allows."""
    stem = PurePosixPath(_parse_split(file)[0]).name
    label = _LABEL.search(stem) or _INNER_LABEL.search(stem)
    return label[1].upper() if label else name_from_stem(stem) or "model"


def name_from_stem(stem: str) -> str:
    """A file name's stem in characters that a reference allows."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")


def same_quantization(first: str, second: str) -> bool:
    """Whether two spellings mean the same quantization: Q4_K_S, q4_k_s and Q4_KS do."""
    return first.upper().replace("_", "") == second.upper().replace("_", "")


def _parse_split(file: str) -> tuple[str, int, int | None]:
    """Split a file name into stem, part number and number of parts; 1 and None for a file that is not split."""
    stem = file[: -len(_SUFFIX)] if file.lower().endswith(_SUFFIX) else file
    if match := _SPLIT.search(stem):
        return stem[: match.start()], int(match[1]), int(match[2])
    return stem, 1, None
