"""Presets: how model cards report results of tasks, as rows of data."""

from __future__ import annotations

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.settings import GENERATION_KEYS

PRESET = "preset"  # the origin of its settings
# Settings on which a score depends: a preset does not take them from config.toml.
CONDITION_KEYS = ("system", "format", "lora", "cache_type", "flash_attn", *GENERATION_KEYS)


@frozen
class Preset:
    """How a model card reports a task, and the settings for it; `name` is that of the model in the catalog.

    None is a temperature that the card does not state, and leaves it to the default.
    """

    name: str
    task: str
    published: str
    temperature: float | None = 0.0
    samples: int = 1


# Where the card of the 8x7B does not state the temperature of single answers, it is that of the 7B.
PRESETS = (
    Preset("cerebrum-7b", "gsm8k", "zero-shot, temperature 0"),
    Preset("cerebrum-7b", "math", "zero-shot, temperature 0"),
    Preset("cerebrum-7b", "arc-challenge", "zero-shot, temperature 0"),
    Preset("cerebrum-8x7b", "gsm8k", "maj@8", temperature=None, samples=8),
    Preset("cerebrum-8x7b", "math", "zero-shot"),
    Preset("cerebrum-8x7b", "arc-challenge", "zero-shot"),
    Preset("cerebrum-8x7b", "humaneval", "zero-shot"),
)
PRESET_NAMES = tuple(dict.fromkeys(preset.name for preset in PRESETS))


def find_preset(name: str, task: str) -> Preset:
    """Find the row of a preset for a task. Raises UsageError."""
    if name not in PRESET_NAMES:
        raise UsageError(f"unknown preset {name!r}", f"use {' or '.join(PRESET_NAMES)}")
    rows = {preset.task: preset for preset in PRESETS if preset.name == name}
    if task not in rows:
        raise UsageError(f"the card of {name} has no results for {task!r}", f"preset {name} has {', '.join(rows)}")
    return rows[task]
