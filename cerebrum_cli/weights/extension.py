"""The command that merges models."""

from cerebrum_cli.core.extensions import Command, Extension

EXTENSION = Extension(
    commands=(Command("merge", "cerebrum_cli.weights.merge_command", "merge", "Merge models from a recipe"),)
)
