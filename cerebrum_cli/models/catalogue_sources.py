"""Sources of the catalog's models: repositories on the Hub, and Python packages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

_QUANT = r"(?:UD-)?[A-Za-z0-9_]+"
_SPLIT = r"-\d{5}-of-\d{5}"


class Quantization(NamedTuple):
    """A quantization of a model: its name in file names, and its size in bytes (rounded if known in GB only)."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub with a model's files, and the pattern of their names."""

    repo_id: str
    file: str
    quantizations: tuple[Quantization, ...] = ()
    revision: str | None = None

    def matches(self, filename: str) -> bool:
        """Whether a file of this name, possibly part of a split file, belongs to this model."""
        if not filename.lower().startswith(self.file.partition("{quant}")[0].removesuffix(".gguf").lower()):
            return False  # most rows; a pattern for each takes longer
        pattern = _QUANT.join(map(re.escape, self.file[: -len(".gguf")].split("{quant}")))
        return bool(re.fullmatch(rf"{pattern}(?:{_SPLIT})?\.gguf", filename, re.IGNORECASE))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A repository known to be broken."""

    repo_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A model file inside a Python package: pip requirement, member of the wheel, digest and sizes in bytes."""

    requirement: str
    member: str
    sha256: str
    size: int
    download_size: int

    @property
    def filename(self) -> str:
        return PurePosixPath(self.member).name
