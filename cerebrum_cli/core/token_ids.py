"""The type of a text in tokens."""

from __future__ import annotations

from typing import TypeAlias

TokenIds: TypeAlias = tuple[int, ...]
