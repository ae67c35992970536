"""LoRA adapters as settings name them: a file, and how strongly it applies."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import NamedTuple

LORA = "lora"  # key of the adapters among recorded settings
NONE = "none"  # instead of a file: no adapter, whatever a layer below sets


class AdapterReference(NamedTuple):
    """An adapter's file, and the factor of its effect."""

    path: str
    scale: float = 1.0


def parse_adapter(text: str) -> AdapterReference:
    """Read FILE or FILE:SCALE. Raises ValueError for a scale that is not finite, and for a missing file name."""
    name, colon, number = text.rpartition(":")
    try:
        reference = AdapterReference(name, float(number)) if colon else AdapterReference(text)
    except ValueError:  # a colon in the name
        reference = AdapterReference(text)
    if not reference.path or not isfinite(reference.scale):
        raise ValueError(text)
    return reference


def rebased(text: str, directory: Path) -> str:
    """An adapter as a file in this directory names it: its path is relative to the directory."""
    return text if text == NONE else str(directory / Path(text).expanduser())
