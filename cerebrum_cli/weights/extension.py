"""The command that merges models, and what merges and converts them for `cerebrum pull`."""

from cerebrum_cli.cli import Command, Extension

EXTENSION = Extension(
    commands=(Command("merge", "cerebrum_cli.weights.merge_command", "MergeCommand", "Merge models from a recipe"),),
    model_builder="cerebrum_cli.weights.building:BUILDER",
)
