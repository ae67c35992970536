"""The GGUF files of a repository as the models one can have: one a quantisation, the parts of a split file together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

# As llama.cpp writes it (llama_split_path): five digits, the first part is 1.
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
# What the names of quantised files end in, as llama-quantize and the repositories' own habits spell it.
_LABEL = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))$", re.IGNORECASE
)
_NO_MODEL = re.compile(r"(?:^|[-._])(?:mmproj|imatrix)(?:[-._]|$)", re.IGNORECASE)  # parts of others, not models


class Variant(NamedTuple):
    """One model of a repository: its quantisation (the file's stem where that names none), its files in order."""

    quantization: str
    files: tuple[str, ...]


def variants(files: Iterable[str]) -> tuple[Variant, ...]:
    """Return the models among a repository's files, by name; a split file that lacks a part is none."""
    parts: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for file in sorted(files):
        stem = file[: -len(".gguf")]
        if not file.lower().endswith(".gguf") or _NO_MODEL.search(PurePosixPath(stem).name):
            continue
        split = _SPLIT.search(stem)
        key, number, count = (stem[: split.start()], int(split[1]), int(split[2])) if split else (stem, 1, 1)
        parts.setdefault(f"{key}/{count}", {})[number] = file
        counts[f"{key}/{count}"] = count
    return tuple(
        Variant(quantization_of(numbered[1]), tuple(numbered[number] for number in sorted(numbered)))
        for key, numbered in parts.items()
        if sorted(numbered) == list(range(1, counts[key] + 1))
    )


def parts_of(name: str) -> tuple[str, ...]:
    """Return the names of all files of the model that a file name is of: itself, or every part of a split one."""
    stem = name[: -len(".gguf")]
    split = _SPLIT.search(stem)
    if split is None or not name.lower().endswith(".gguf"):
        return (name,)
    count = int(split[2])
    return tuple(f"{stem[: split.start()]}-{number:05}-of-{count:05}{name[-5:]}" for number in range(1, count + 1))


def same_quantization(one: str, other: str) -> bool:
    """Return whether two spellings are of one quantisation: Q4_K_S, q4_k_s and Q4_KS are."""
    return one.upper().replace("_", "") == other.upper().replace("_", "")


def quantization_of(file: str) -> str:
    """Return the quantisation a file's name ends in, in capitals; its stem where it names none."""
    stem = _SPLIT.sub("", PurePosixPath(file).name.removesuffix(".gguf"))
    label = _LABEL.search(stem)
    return label[1].upper() if label else stem
