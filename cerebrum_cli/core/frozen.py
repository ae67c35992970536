"""Values: dataclasses that cannot change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(kind: type[T]) -> type[T]:
    """A class of fields as a dataclass that is frozen and has slots."""
    return dataclass(frozen=True, slots=True)(kind)
