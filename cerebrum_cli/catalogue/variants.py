"""The GGUF files of a repository as the models one can have: one a quantisation, the parts of a split file together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

_SUFFIX = ".gguf"
# As llama.cpp writes it (llama_split_path): five digits, the first part is 1.
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
# What the names of quantised files end in, as llama-quantize and the repositories' own habits spell it.
_LABEL = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?:[-._]imat(?:rix)?)?$",
    re.IGNORECASE,
)
_PROJECTOR = re.compile(r"(?:^|[-._])mmproj(?:[-._]|$)", re.IGNORECASE)  # a part of others, and no model
_IMATRIX = re.compile(r"(?:^|[-._])imatrix(?:[-._]|$)", re.IGNORECASE)  # statistics, unless a quantisation follows


class Variant(NamedTuple):
    """One model of a repository: its quantisation (the file's stem where that names none), its files in order."""

    quantization: str
    files: tuple[str, ...]


class _Split(NamedTuple):
    """What a file name says of parts: the stem they share, which one this is, of how many; one of one if nothing."""

    stem: str
    part: int
    total: int
    is_split: bool

    @property
    def is_valid(self) -> bool:
        """Whether there can be such a part."""
        return 1 <= self.part <= self.total


def variants(files: Iterable[str]) -> tuple[Variant, ...]:
    """Return the models among a repository's files, by name; a split file that lacks a part is none."""
    models: dict[tuple[str, ...], dict[int, str]] = {}
    for file in sorted(files):
        if is_model(file):
            models.setdefault(parts_of(file), {})[_parse_split(file).part] = file
    return tuple(
        Variant(quantization_of(parts[0]), parts) for parts, numbered in models.items() if len(numbered) == len(parts)
    )


def is_model(file: str) -> bool:
    """Return whether a file's name is one of a model, or of a part of one."""
    split = _parse_split(file)
    stem = PurePosixPath(split.stem).name
    is_auxiliary = _PROJECTOR.search(stem) or (_IMATRIX.search(stem) and not _LABEL.search(stem))
    return file.lower().endswith(_SUFFIX) and bool(stem) and split.is_valid and not is_auxiliary


def parts_of(name: str) -> tuple[str, ...]:
    """Return the names of all files of the model that a file name is of: itself, or every part of a split one."""
    split = _parse_split(name)
    if not (split.is_split and split.is_valid):
        return (name,)
    end = name[-len(_SUFFIX) :]
    return tuple(f"{split.stem}-{part:05}-of-{split.total:05}{end}" for part in range(1, split.total + 1))


def unsplit_name(name: str) -> str:
    """Return what a model's file would be called if it were not split into parts, one of which has this name."""
    split = _parse_split(name)
    return f"{split.stem}{name[-len(_SUFFIX) :]}" if split.is_split else name


def quantization_of(file: str) -> str:
    """Return the quantisation a file's name ends in, in capitals; where it names none, its stem as a reference can."""
    stem = PurePosixPath(_parse_split(file).stem).name
    label = _LABEL.search(stem)
    return label[1].upper() if label else re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "model"


def same_quantization(one: str, other: str) -> bool:
    """Return whether two spellings are of one quantisation: Q4_K_S, q4_k_s and Q4_KS are."""
    return one.upper().replace("_", "") == other.upper().replace("_", "")


def _parse_split(file: str) -> _Split:
    stem = file[: -len(_SUFFIX)] if file.lower().endswith(_SUFFIX) else file
    if found := _SPLIT.search(stem):
        return _Split(stem[: found.start()], int(found[1]), int(found[2]), True)
    return _Split(stem, 1, 1, False)
