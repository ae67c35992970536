"""The environment variables that set settings, and the servers of `--endpoint`."""

from __future__ import annotations

from typing import Any

from cerebrum_cli.core.declaration import Option, variable
from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.settings import OPTIONS, Layer, SourcedLayer

ENDPOINT = "endpoint"  # the one option that has a variable; it names several servers with spaces between them


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
    texts = text.split() if declared.name == ENDPOINT else [text]
    return declared.parse(texts, source, has_quotes=not declared.heading), source


def variable_that_sets(name: str) -> str | None:
    """The environment variable that sets a setting or the servers; None if it is not set."""
    source = variable(name)
    if name not in OPTIONS and name != ENDPOINT:
        return None
    return None if environment(source) is None else source
