"""Values: dataclasses whose fields cannot be assigned again."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(kind: type[T]) -> type[T]:
    """A class of fields as a frozen dataclass with slots.

    Its `==`, hash and `repr` are shared by all such classes: dataclasses would compile them for each, which takes twice
    as long, 20 ms of a command's start.
    """
    value: Any = dataclass(frozen=True, slots=True, eq=False, repr=False)(kind)
    compared = attrgetter(*(field.name for field in fields(value) if field.compare))
    hashed = attrgetter(*(field.name for field in fields(value) if field.compare and field.hash is not False))

    def __eq__(self: Any, other: Any) -> Any:
        return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(hashed(self))

    value.__eq__ = __eq__
    value.__hash__ = __hash__
    value.__repr__ = _repr
    return value  # type: ignore[no-any-return]


def _repr(self: Any) -> str:
    shown = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr)
    return f"{self.__class__.__qualname__}({shown})"
