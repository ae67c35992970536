"""The servers that a user names, by URL or by their table in config.toml, and the model that they serve."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import ConfigError, EndpointError, ModelNotFound, UsageError
from cerebrum_cli.core.settings import CHOSEN, ENVIRONMENT, LOCAL_KEYS, Settings

if TYPE_CHECKING:
    from cerebrum_cli.engine.remote.client import Endpoint
    from cerebrum_cli.model.installation import Installation
    from cerebrum_cli.models.model import InstalledModel


@dataclass(frozen=True, slots=True)
class Servers:
    """Servers of a model, with `window` requests each at a time; with `earlier` records, only such servers.

    `timeouts` are fields of ServerTimeouts other than the defaults. With `may_differ`, each may have its own model.
    """

    endpoints: Sequence[Endpoint]
    window: int | None = None
    earlier: Sequence[Mapping[str, str]] = ()
    timeouts: Mapping[str, Any] = field(default_factory=dict)
    may_differ: bool = False


def find_endpoints(
    installation: Installation,
    texts: Sequence[str],
    settings: Settings,
    served_model_name: str | None = None,
    allow_http_key: bool = False,
) -> tuple[Endpoint, ...]:
    """The servers of these names and URLs. Raises UsageError, ConfigError."""
    if not texts:
        return ()
    named = settings.model
    if not is_chosen(settings) and find_vocabulary(installation, named):  # it may be meant for commands without servers
        named = None
    endpoints = []
    for text in texts:
        endpoint = find_endpoint(installation, text)
        changes = {"served_model": served_model_name} if served_model_name else {}
        endpoints.append(replace(endpoint, **changes, allow_http_key=allow_http_key, named_model=named))
    urls = [endpoint.url for endpoint in endpoints]
    if repeated := next((url for url in urls if urls.count(url) > 1), None):
        raise UsageError(f"the endpoint {repeated} is given twice", "omit one of them")
    for endpoint in endpoints:
        endpoint.validate()
    return tuple(endpoints)


def find_endpoint(installation: Installation, text: str) -> Endpoint:
    """The server that a URL, or a table of config.toml, names. Raises UsageError, ConfigError."""
    from cerebrum_cli.engine.remote.client import KEY_VARIABLE, Endpoint, parse_url

    tables = installation.config.endpoints
    if table := tables.get(text):
        key = environment(table.key_env or KEY_VARIABLE)
        if table.key_env and key is None:
            raise ConfigError(f"endpoint {text}: {table.key_env} is not set", f"run export {table.key_env}=KEY")
        return Endpoint(text, parse_url(table.url), key, table.served_model)
    if "://" in text:
        url = parse_url(text)
        return Endpoint(url, url, environment(KEY_VARIABLE))
    known = f"config.toml has {', '.join(tables)}" if tables else "config.toml has no table [endpoints.NAME]"
    raise UsageError(f"unknown endpoint {text!r}", f"{known}; a URL begins with http:// or https://")


def find_remote_model(installation: Installation, settings: Settings, endpoints: Sequence[Endpoint]) -> InstalledModel:
    """The model whose vocabulary the servers have, or the one that they are asked for, if the first takes messages.

    Raises ModelNotFound, UsageError, ConfigError, EndpointError.
    """
    from cerebrum_cli.engine.remote.client import BusyServerError
    from cerebrum_cli.engine.remote.description import probe
    from cerebrum_cli.models.library import served_model

    model = find_vocabulary(installation, settings.model)
    if model and is_chosen(settings):
        return model
    try:
        info = probe(endpoints[0])
        if info.kind.takes_messages:
            return served_model(info.weights)
    except EndpointError:
        if not model:
            raise
    except BusyServerError:
        pass
    return model or installation.library.resolve_vocabulary(settings.model)


def find_vocabulary(installation: Installation, name: str | None) -> InstalledModel | None:
    """The model of this machine with a name, or the default; None without it."""
    with contextlib.suppress(ModelNotFound):
        return installation.library.resolve_vocabulary(name)
    return None


def is_chosen(settings: Settings) -> bool:
    """Whether the model is named for this command."""
    origin = settings.origin("model")
    return origin in CHOSEN or origin.startswith(ENVIRONMENT)


def require_no_adapters(settings: Settings, option: str) -> None:
    """Raise UsageError if any layer sets adapters: answers would differ without them."""
    if settings.lora:
        problem = f"{option} cannot apply the adapter {settings.lora[0]}: adapters apply to local models"
        hint = "load it in the server, and use --lora none" if option == "--endpoint" else "use --lora none"
        raise UsageError(problem, hint)


def without_local(settings: Settings) -> Settings:
    """Settings without those of a model on this machine, which config.toml may set. Raises UsageError for adapters."""
    require_no_adapters(settings, "--endpoint")
    defaults = Settings()
    return replace(settings, **{key: getattr(defaults, key) for key in LOCAL_KEYS})
