"""How a run differs from the preset under which it was made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from shlex import quote
from textwrap import shorten
from typing import Any

from cerebrum_cli.core.declaration import flag
from cerebrum_cli.core.environment import without_home
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.settings import GENERATION_KEYS, OPTIONS, RECOMMENDED, Settings
from cerebrum_cli.eval.presets import Preset
from cerebrum_cli.replies.source import ModelSource

PRESET = "preset"  # the origin of its settings
# Settings on which a score depends: a preset does not take them from config.toml.
CONDITION_KEYS = ("system", "format", "lora", "cache_type", "flash_attn", *GENERATION_KEYS)
DEFAULTS = Settings()
MAX_SHOWN = 40  # characters of a setting in a remark


def no_reproduction(source: ModelSource, preset: Preset, expected: JsonObject, deviations: Iterable[str]) -> str | None:
    """Remark on differences from a preset, in model, settings and other `deviations`; None without any.

    None in `expected` is a value that the preset leaves open.
    """
    spec, settings = source.model.spec, source.settings
    differences = []
    if spec is None or spec.name != preset.model:
        differences.append(f"model {source.model.label}, not {preset.model}")
    for key in CONDITION_KEYS:
        value, meant = getattr(settings, key), expected.get(key, getattr(DEFAULTS, key))
        is_open = key == "seed" or (key in expected and meant is None)
        if settings.origin(key) not in (*RECOMMENDED, PRESET) and value != meant and not is_open:
            differences.append(OPTIONS[key].argument_for(shown(value)))
    differences += deviations
    if not differences:
        return None
    return f"this run does not reproduce {preset.source}: {'; '.join(differences)}"


def given_options(options: object, *names: str) -> Iterator[str]:
    for name in names:
        if value := getattr(options, name, None):  # it may be an option of a package that is not there
            yield flag(name) if value is True else f"{flag(name)} {shown(value)}"


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    parts = value if isinstance(value, tuple) else (value,)
    text = " ".join(without_home(str(part)) for part in parts)
    return quote(shorten(text, MAX_SHOWN, placeholder="..."))
