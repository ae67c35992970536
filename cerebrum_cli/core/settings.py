"""Settings as a stack of partial values, folded into one frozen value; the only place that reads the environment.

Lowest first: the defaults below, the model's row in models.toml, config.toml, CEREBRUM_* variables, the command line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.sampling import SEEDS, SamplingParams

Layer = Mapping[str, Any]
OVERFLOWS = ("drop-oldest", "stop")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a command runs with, once everything has been folded; None leaves a choice to the model or the machine.

    `overflow` is what becomes of a chat longer than the context, `cache_gb` how many gigabytes of what models have
    read are kept on disk; 0 is none.
    """

    model: str | None = None
    system: str | None = None
    format: str | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ctx: int | None = None
    threads: int | None = None
    gpu_layers: str = "auto"
    overflow: str = "drop-oldest"
    cache_gb: float = 4.0

    def sampling(self, format_stop: tuple[str, ...]) -> SamplingParams:
        """Return the sampling settings, with the format's stop strings beside the user's."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            seed=self.seed,
            max_tokens=self.max_tokens,
            stop=(*format_stop, *self.stop),
        )


class Range(NamedTuple):
    """What a number may be: its type, the least and the most."""

    type: type[int] | type[float]
    least: float
    most: float = float("inf")


RANGES = {
    "max_tokens": Range(int, 1),
    "temperature": Range(float, 0),
    "top_k": Range(int, 0),
    "top_p": Range(float, 0, 1),
    "min_p": Range(float, 0, 1),
    "repeat_penalty": Range(float, 0.01),
    "seed": Range(int, 0, SEEDS - 1),
    "ctx": Range(int, 1),
    "threads": Range(int, 1, 1024),
    "cache_gb": Range(float, 0),
}
KEYS = tuple(field.name for field in fields(Settings))


def fold(*layers: Layer) -> Settings:
    """Return one value from partial ones, later layers over earlier; None in a layer says nothing."""
    values: dict[str, Any] = {}
    for layer in layers:
        values.update((key, validate(key, value)) for key, value in layer.items() if value is not None)
    return Settings(**values)


def validate(key: str, value: Any) -> Any:
    """Return a setting's value in its own type; UsageError if it cannot be that."""
    spelled = "--" + key.replace("_", "-")
    if key in RANGES:
        kind, least, most = RANGES[key]
        wrong = isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float))
        if wrong or value == float("inf") or not least <= value <= most:
            bounds = f"from {least:g} to {most:.10g}" if most != float("inf") else f"of {least:g} or more"
            raise UsageError(f"{spelled} is {value!r}", f"it must be {_article(kind)} {bounds}")
        return kind(value)
    if key == "stop":
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) and item for item in items):
            raise UsageError(f"{spelled} is {value!r}", "it must be text that is not empty")
        return tuple(items)
    if key == "overflow" and value not in OVERFLOWS:
        raise UsageError(f"{spelled} is {value!r}", f"it must be {' or '.join(OVERFLOWS)}")
    if key == "gpu_layers":
        text = str(value)
        if text not in ("auto", "all") and not text.isdecimal():
            raise UsageError(f"{spelled} is {text!r}", "it must be a number of layers, `auto` or `all`")
        return text
    if not isinstance(value, str):
        raise UsageError(f"{spelled} is {value!r}", "it must be text")
    return value


def parse_value(key: str, text: str) -> Any:
    """Return a setting's value that was written as text; UsageError if it cannot be that."""
    kind = RANGES[key].type if key in RANGES else str
    try:
        value: Any = kind(text)
    except ValueError:
        value = text
    return validate(key, value)


def read_config(path: Path) -> Layer:
    """Return the settings in a config.toml; none if there is no such file; ConfigError naming file and key."""
    import tomllib

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}", "mend the file, or move it away") from error
    layer = {key.replace("-", "_"): value for key, value in values.items()}
    for key, value in layer.items():
        if key not in KEYS:
            raise ConfigError(f"{path}: unknown key `{key}`", f"known are {', '.join(KEYS)}")
        try:
            validate(key, value)
        except UsageError as error:
            raise ConfigError(f"{path}: key `{key}`: {error.message.partition(' is ')[2]}", error.hint) from error
    return layer


def environment(name: str) -> str | None:
    """Return an environment variable; None if it is unset or empty."""
    return os.environ.get(name) or None


def forget_empty_variable(name: str) -> None:
    """Unset a variable that is empty, for libraries that take the empty text for a value."""
    if os.environ.get(name) == "":
        del os.environ[name]


def set_environment_default(name: str, value: str) -> None:
    """Set a variable that libraries read, unless the user has."""
    os.environ.setdefault(name, value)


def _article(kind: type[int] | type[float]) -> str:
    return "a whole number" if kind is int else "a number"
