"""Servers by their URLs, or by the names of their tables in config.toml, and the model that they have."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cerebrum_cli.core.errors import EndpointError, ModelNotFound, UsageError
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.settings import CHOSEN, ENVIRONMENT, Settings
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library
from cerebrum_cli.servers.endpoint import Endpoint
from cerebrum_cli.servers.remote_engine import probe


def find_endpoints(
    library: Library,
    tables: Mapping[str, JsonObject],
    texts: Sequence[str],
    settings: Settings,
    served_model_name: str | None = None,
) -> tuple[Endpoint, ...]:
    named = settings.model
    if not is_chosen(settings) and find_installed(library, named):  # it may be meant for commands without servers
        named = None
    endpoints = []
    for text in texts:
        endpoint = find_endpoint(tables, text)
        served = served_model_name or endpoint.served_model
        endpoints.append(replace(endpoint, served_model=served, named_model=named))
        endpoints[-1].validate()
    urls = [endpoint.url for endpoint in endpoints]
    for endpoint in endpoints:
        if urls.count(endpoint.url) > 1:
            raise UsageError(f"the endpoint {endpoint.name} is given twice", "omit one of them")
    return tuple(endpoints)


def find_endpoint(tables: Mapping[str, JsonObject], text: str) -> Endpoint:
    """A server by its URL or the name of its table. Raises UsageError or ConfigError."""
    if table := tables.get(text):
        return Endpoint.of_table(text, table)
    if "://" in text:
        return Endpoint.at(text)
    known = f"config.toml has {', '.join(tables)}" if tables else "config.toml has no table [endpoints.NAME]"
    raise UsageError(f"unknown endpoint {text!r}", f"{known}; a URL begins with http:// or https://")


def find_remote_model(library: Library, settings: Settings, endpoints: Sequence[Endpoint]) -> InstalledModel:
    """The installed model whose vocabulary the servers have, or the one that they are asked for, if they get messages.

    Raises UsageError, ConfigError, EndpointError.
    """
    model = find_installed(library, settings.model)
    if model and is_chosen(settings):
        return model
    try:
        info = probe(*endpoints, as_messages=model is None)
    except EndpointError:
        if model:
            return model
        raise
    if model and not info.takes_messages:
        return model
    return InstalledModel.served(info.weights)


def find_installed(library: Library, name: str | None) -> InstalledModel | None:
    with contextlib.suppress(ModelNotFound):
        return library.resolve(name)
    return None


def is_chosen(settings: Settings) -> bool:
    origin = settings.origin("model")
    return origin in CHOSEN or origin.startswith(ENVIRONMENT)
