"""Conversions of checkpoints on disk."""

from pathlib import Path

from cerebrum_cli.weights.checkpoints.checkpoint import read_checkpoint
from cerebrum_cli.weights.execute import execute, require_supported_types
from cerebrum_cli.weights.plan import plan_conversion


def convert_checkpoint(folder: Path, out: Path, type: str) -> Path:
    """Convert with two threads."""
    plan = plan_conversion(read_checkpoint(folder, "tiny checkpoint"), type, {})
    require_supported_types(plan)
    execute(plan, out, 2, lambda done, total: None)
    return out
