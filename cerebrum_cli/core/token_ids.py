"""Types of tokenized text and of the functions that tokenize it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

TokenIds: TypeAlias = tuple[int, ...]
Tokenize = Callable[[str], TokenIds]
