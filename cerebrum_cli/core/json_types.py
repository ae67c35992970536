"""Types of JSON objects and of TOML tables: those that are built, and those that are only read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

JsonDict: TypeAlias = dict[str, Any]
JsonObject: TypeAlias = Mapping[str, Any]
