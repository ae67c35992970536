"""Values: dataclasses whose fields nothing assigns again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(kind: type[T]) -> type[T]:
    """A class of fields as a dataclass that has slots and a hash, and is frozen for type checkers.

    Forbidding assignments at run time, too, takes twice as long for each class: 20 ms of a command's start.
    """
    return dataclass(slots=True, unsafe_hash=True)(kind)
