"""Values: dataclasses whose fields cannot be assigned again."""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(kind: type[T]) -> type[T]:
    """A class of fields as a frozen dataclass with slots.

    What dataclasses would compile for each class is shared by all: that takes 20 ms of a command's start.
    """
    value: Any = dataclass(init=False, repr=False, eq=False, slots=True)(kind)
    compared = attrgetter(*(field.name for field in fields(value) if field.compare))
    hashed = attrgetter(*(field.name for field in fields(value) if field.compare and field.hash is not False))

    def __eq__(self: Any, other: Any) -> Any:
        return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(hashed(self))

    value.__eq__ = __eq__
    value.__hash__ = __hash__
    value.__repr__ = _repr
    value.__getstate__ = _state
    value.__setstate__ = _set_state
    return freeze(value)  # type: ignore[no-any-return]


def freeze(kind: Any) -> Any:
    """Give a dataclass without a constructor one, after which its fields cannot be assigned."""
    names = {field.name for field in fields(kind)}
    positional = [field.name for field in fields(kind) if field.init and not field.kw_only]
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    factories = {field.name: field.default_factory for field in fields(kind) if field.default_factory is not MISSING}
    is_checked = hasattr(kind, "__post_init__")

    def __init__(self: Any, *values: Any, **named: Any) -> None:
        given = {**defaults, **dict(zip(positional, values, strict=False)), **named}
        for name, create in factories.items():
            if name not in given:
                given[name] = create()
        if given.keys() != names or len(values) > len(positional):
            raise TypeError(f"{kind.__qualname__}() takes {', '.join(sorted(names))}")
        for name, value in given.items():
            _assign(self, name, value)
        if is_checked:
            self.__post_init__()

    kind.__init__ = __init__
    kind.__setattr__ = kind.__delattr__ = _refuse
    return kind


_assign = object.__setattr__


def _refuse(self: Any, name: str, *_: Any) -> None:
    raise FrozenInstanceError(f"cannot change {self.__class__.__qualname__}.{name}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for each, value in zip(fields(self), state, strict=True):
        _assign(self, each.name, value)


def _repr(self: Any) -> str:
    shown = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr)
    return f"{self.__class__.__qualname__}({shown})"
