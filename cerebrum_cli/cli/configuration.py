"""`cerebrum config`: the settings in effect, and those in config.toml."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.cli.command import BaseCommand, argument, environment_layer, variable_that_sets
from cerebrum_cli.cli.options import json_option
from cerebrum_cli.core.declaration import option_group
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import absolute_reference, translate_os_errors
from cerebrum_cli.core.settings import KEYS, OPTIONS, in_directory, read_config
from cerebrum_cli.core.text import did_you_mean
from cerebrum_cli.terminal.tables import settings_lines

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App

ACTIONS = ("set", "edit")
USAGE = "write cerebrum config, cerebrum config set KEY VALUE, or cerebrum config edit"


def actions(_: App) -> Iterable[str]:
    return ACTIONS


def keys(_: App) -> Iterable[str]:
    return KEYS


@option_group
class ConfigCommand(BaseCommand):
    """Settings in config.toml apply to every command; its comments are kept.

    Examples:
      cerebrum config set model cerebrum-7b
      cerebrum config set temperature 0.2
      cerebrum config set temperature
      cerebrum config edit
    """

    action: str | None = argument("[set|edit]", "What to do [default: list the settings]", actions, is_required=False)
    key: str | None = argument("[KEY]", "A setting; cerebrum config lists them", keys, is_required=False)
    value: str | None = argument("[VALUE]", "Its value; without one, the setting is reset", is_required=False)
    json: bool = json_option("array")

    def run(self, app: App) -> None:
        path = app.config_directory / "config.toml"
        match self.action, self.key, self.value:
            case None, None, None:
                list_settings(app, path, self.json)
            case "set", str(key), _:
                set_value(app, path, key, self.value)
            case "edit", None, None:
                edit(app, path)
            case "set" | "edit", _, _:
                raise UsageError(f"missing or unexpected argument of config {self.action}", USAGE)
            case _:
                raise UsageError(f"unknown argument {self.action!r}", USAGE)


def list_settings(app: App, path: Path, json: bool) -> None:
    """Print every setting, its value if it has one, and where that comes from."""
    settings = app.settings(environment_layer(*KEYS))
    values = {key: getattr(settings, key) for key in KEYS}
    if json:
        rows = [{"key": key, "value": value, "origin": settings.origin(key)} for key, value in values.items()]
        app.streams.answer(rows)
        return
    shown = {key: "-" if value is None else value for key, value in values.items()}
    app.streams.answer(settings_lines(shown, {key: settings.origin(key) for key in values}) + "\n")
    app.streams.draw(f"file: {path}\n")


def set_value(app: App, path: Path, name: str, text: str | None) -> None:
    """Write a setting, with absolute paths; without a text, remove it. Raises UsageError for an invalid value."""
    key = name.replace("-", "_")
    if key not in OPTIONS:
        raise UsageError(f"there is no setting {name!r}", f"{did_you_mean(key, KEYS)}list all with cerebrum config")
    app.write_setting(key, None if text is None else file_value(key, name, text))
    done = "reset" if text is None else f"set to {text}"
    app.streams.note(f"{name} {done} in {path}")
    if over := variable_that_sets(key):
        app.streams.note(NoticeEvent(f"the environment variable {over} overrides it", f"unset {over}"))


def file_value(key: str, name: str, text: str) -> Any:
    """A value as config.toml has it, with absolute paths; errors name it by `name`. Raises UsageError."""
    value = OPTIONS[key].parse([text], name, has_quotes=False)
    value = in_directory({key: value}, Path.cwd())[key]
    if key == "model":
        return absolute_reference(value)
    return list(value) if isinstance(value, tuple) else value


def edit(app: App, path: Path) -> None:
    """Open config.toml in an editor. Raises ConfigError if it is invalid afterwards."""
    with translate_os_errors(ConfigError, path):
        path.parent.mkdir(parents=True, exist_ok=True)
    app.streams.edit(path)
    read_config(path)
