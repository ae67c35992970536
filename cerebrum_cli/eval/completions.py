"""Values that a shell completes in commands of evaluations: tasks and presets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App


def tasks(_: App) -> Iterable[str]:
    from cerebrum_cli.eval.tasks import TASK_NAMES

    return TASK_NAMES


def presets(_: App) -> Iterable[str]:
    from cerebrum_cli.eval.presets import PRESET_NAMES

    return PRESET_NAMES
