"""The types of a text in tokens, and of what finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

TokenIds: TypeAlias = tuple[int, ...]
Tokenize = Callable[[str], TokenIds]
