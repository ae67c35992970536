"""The environment variables that set options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cerebrum_cli.core.declaration import Option, variable
from cerebrum_cli.core.environment import environment, environment_names
from cerebrum_cli.core.settings import ENVIRONMENT, OPTIONS, Layer, SourcedLayer
from cerebrum_cli.core.text import did_you_mean


def unknown_variables(known: Iterable[str]) -> dict[str, str]:
    """Variables that set no option, each with a hint."""
    names = list(map(variable, known))
    unknown = {}
    for name in environment_names():
        if name.startswith(ENVIRONMENT) and name not in names:
            near = did_you_mean(name, tuple(names), cutoff=0.8).rstrip()
            unknown[name] = near or "run cerebrum COMMAND --help to list the options"
    return unknown


def environment_layer(*keys: str) -> Layer:
    """The settings of these keys that CEREBRUM_* variables set. Raises UsageError."""
    layer = SourcedLayer()
    for key in keys:
        layer.put(key, *environment_value(OPTIONS[key]))
    return layer


def environment_value(declared: Option) -> tuple[Any, str]:
    """The value that a variable gives an option, and the name of the variable; None without one. Raises UsageError."""
    source = variable_that_sets(declared.name)
    if source is None:
        return None, ""
    text = environment(source) or ""
    texts = declared.splits(text) if declared.splits else [text]
    return declared.parse(texts, source, has_quotes=not declared.heading), source


def variable_that_sets(name: str) -> str | None:
    """The environment variable that sets an option; None if it is not set."""
    source = variable(name)
    return None if environment(source) is None else source
