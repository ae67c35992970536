"""The servers that `--endpoint` names, by URL or by their table in config.toml."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import BatchError, ConfigError, EndpointError, ModelNotFound, UsageError
from cerebrum_cli.core.events import Event, ServersEvent
from cerebrum_cli.core.settings import CHOSEN, ENVIRONMENT, LOCAL_KEYS, Settings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.options import ServerOptions
    from cerebrum_cli.engine.remote.client import Endpoint
    from cerebrum_cli.model.loading import LoadedModel
    from cerebrum_cli.models.model import Model
    from cerebrum_cli.runs.journal import Journal

    Servers = Sequence[Mapping[str, str]]  # as they are recorded


def find_endpoints(app: App, options: ServerOptions, settings: Settings) -> tuple[Endpoint, ...]:
    """The servers to use; none without `--endpoint`. Raises UsageError, ConfigError."""
    if not options.endpoint:
        return ()
    named = settings.model
    if not is_chosen(settings) and find_vocabulary(app, named):  # it may be meant for commands without servers
        named = None
    endpoints = tuple(replace(find_endpoint(app, text, options), named_model=named) for text in options.endpoint)
    urls = [endpoint.url for endpoint in endpoints]
    if repeated := next((url for url in urls if urls.count(url) > 1), None):
        raise UsageError(f"the endpoint {repeated} is given twice", "omit one of them")
    for endpoint in endpoints:
        endpoint.validate()
    return endpoints


def find_endpoint(app: App, text: str, options: ServerOptions) -> Endpoint:
    from cerebrum_cli.engine.remote.client import KEY_VARIABLE, Endpoint, parse_url

    tables = app.config.endpoints
    if text in tables:
        table = tables[text]
        key = environment(table.key_env or KEY_VARIABLE)
        if table.key_env and key is None:
            raise ConfigError(f"endpoint {text}: {table.key_env} is not set", f"run export {table.key_env}=KEY")
        url, served_model = parse_url(table.url), options.served_model_name or table.served_model
    elif "://" in text:
        url, served_model, key = parse_url(text), options.served_model_name, environment(KEY_VARIABLE)
    else:
        known = f"config.toml has {', '.join(tables)}" if tables else "config.toml has no table [endpoints.NAME]"
        raise UsageError(f"unknown endpoint {text!r}", f"{known}; a URL begins with http:// or https://")
    return Endpoint(text if text in tables else url, url, key, served_model, options.allow_http_key)


def find_remote_model(app: App, settings: Settings, options: ServerOptions) -> Model:
    """The model whose vocabulary the servers have, or the one that they are asked for, if the first takes messages.

    Raises ModelNotFound, UsageError, ConfigError, EndpointError.
    """
    from cerebrum_cli.engine.remote.client import BusyServerError
    from cerebrum_cli.engine.remote.description import probe
    from cerebrum_cli.models.library import served_model

    model = find_vocabulary(app, settings.model)
    if model and is_chosen(settings):
        return model
    try:
        info = probe(find_endpoints(app, options, settings)[0])
        if info.kind.takes_messages:
            return served_model(info.weights)
    except EndpointError:
        if not model:
            raise
    except BusyServerError:
        pass
    return model or app.library.resolve_vocabulary(settings.model)


def find_vocabulary(app: App, name: str | None) -> Model | None:
    """The model of this machine with a name, or the default; None without it."""
    with contextlib.suppress(ModelNotFound):
        return app.library.resolve_vocabulary(name)
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


def noting_servers(
    events: Generator[Event, None, None], run: Journal, loaded: LoadedModel
) -> Generator[Event, None, None]:
    """Yield events, and note the servers at the end, and as soon as they are known: the process may be killed."""
    is_noted = not loaded.is_remote
    try:
        with contextlib.closing(events):
            for event in events:
                if (not is_noted and loaded.engine.is_loaded) or isinstance(event, ServersEvent):
                    note_servers(run, loaded)
                    is_noted = True
                yield event
    finally:
        note_servers(run, loaded)


def noted_servers(run: Journal) -> Servers:
    noted: Servers = run.notes.get("servers", ())
    return noted


def note_servers(run: Journal, loaded: LoadedModel) -> None:
    """Note the kind, build and model of the servers with the rows they answered; their addresses are not recorded."""
    if loaded.is_remote and loaded.engine.is_loaded:
        note_records(run, loaded.engine.builds)


def note_records(run: Journal, records: Servers) -> None:
    """Add those of these records of servers or nodes that are not noted yet."""
    known = noted_servers(run)
    if new := [record for record in records if record not in known]:
        with contextlib.suppress(BatchError):  # of a full disk: what went wrong before it matters more
            run.write_notes({**run.notes, "servers": [*known, *new]})
