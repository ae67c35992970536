"""Environment variables: the only module that reads or sets them. It imports little, so that start-up is fast."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_defaults: set[str] = set()  # names of variables that are set for libraries


def environment(name: str) -> str | None:
    return os.environ.get(name) or None


def user_environment() -> dict[str, str]:
    """The environment without the variables that are set for libraries: for programs of the user."""
    return {name: value for name, value in os.environ.items() if name not in _defaults}


def set_environment_default(name: str, value: str) -> None:
    """Set a variable for libraries, unless the user has set it."""
    if name not in os.environ:
        os.environ[name] = value
        _defaults.add(name)


def forget_exported_size() -> None:
    """Drop COLUMNS and LINES, which may be those of another window: libraries prefer them to the terminal's size."""
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)


@contextmanager
def environment_defaults(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the libraries that are loaded meanwhile, unless the user has set them."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def is_hub_offline() -> bool:
    return is_set("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def is_set(*names: str) -> bool:
    """Whether the first of these variables that has a value is true, as huggingface_hub reads it."""
    text = next(filter(None, map(environment, names)), "")
    return text.upper() in ("1", "ON", "YES", "TRUE")


def named_proxy(scheme: str, host: str) -> str:
    """The proxy that variables name for a URL with this scheme and host; empty without one."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    named = proxies.get(scheme) or proxies.get("all")
    return named if named and not proxy_bypass(host) else ""


def without_home(path: str) -> str:
    """A path with `~` in place of the user's home directory."""
    home = f"{(environment('HOME') or '~').rstrip('/')}/"
    return f"~/{path.removeprefix(home)}" if path.startswith(home) else path
