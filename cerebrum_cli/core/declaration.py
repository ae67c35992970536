"""Declare an option once, as a dataclass field that carries its flags, help, range and heading.

An option without a flag is a setting that only `--set`, a variable or config.toml changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, Literal, NamedTuple, TypeVar, dataclass_transform, get_args

Heading = Literal["Model", "Sampling", "Length", "Input", "Output", "Speed", "Server"]
HEADINGS: tuple[Heading, ...] = get_args(Heading)

T = TypeVar("T")


class Option(NamedTuple):
    """Properties of an option other than its name, type and default, which are those of its field.

    Numbers lie between `least` and `most`, inclusive. Text is one of `choices` where there are any. A `local` option
    concerns a model on this machine, and has no meaning for one on a server. The variable of a repeatable option holds
    one value; if it `splits`, it holds several, separated by spaces, or paths separated by colons. `kind` is the type
    of its field, without None.
    """

    help: str
    heading: Heading | None = None
    short: str | None = None
    metavar: str | None = None
    least: float = -inf
    most: float = inf
    choices: tuple[str, ...] = ()
    local: bool = False
    splits: bool = False
    kind: str = ""

    @property
    def has_flag(self) -> bool:
        return self.heading is not None

    @property
    def is_list(self) -> bool:
        return self.kind.startswith("tuple")


def setting(default: Any, help: str, **details: Any) -> Any:
    """Declare a dataclass field as an option without a flag."""
    return field(default=default, metadata={"option": Option(help, **details)})


def option(default: Any, help: str, heading: Heading, **details: Any) -> Any:
    """Declare a dataclass field as an option; `details` are further fields of `Option`."""
    return field(default=default, metadata={"option": Option(help, heading, **details)})


@dataclass_transform(frozen_default=True)
def option_group(group: type[T]) -> type[T]:
    """A frozen dataclass of options, without representation and comparison, which take milliseconds of every start."""
    return dataclass(frozen=True, repr=False, eq=False)(group)


def options_of(group: type) -> dict[str, Option]:
    return {
        member.name: member.metadata["option"]._replace(kind=str(member.type).removesuffix(" | None"))
        for member in fields(group)
        if "option" in member.metadata
    }


def flag(name: str) -> str:
    """Flag of an option: "--max-tokens" for `max_tokens`."""
    return "--" + name.rstrip("_").replace("_", "-")


def argument(name: str, declared: Option) -> str:
    """How the command line names an option: "--max-tokens", or "--set overflow" for one without a flag."""
    return flag(name) if declared.has_flag else f"--set {name}"


def variable(name: str) -> str:
    """Environment variable of an option: "CEREBRUM_MAX_TOKENS" for `max_tokens`."""
    return "CEREBRUM_" + name.rstrip("_").upper()
