"""The commands of evaluations."""

from cerebrum_cli.cli import Command, Extension

EXTENSION = Extension(
    commands=(
        Command("eval", "cerebrum_cli.eval.eval_command", "EvalCommand", "Measure how well a model answers"),
        Command("runs", "cerebrum_cli.eval.runs_command", "GROUP", "Show and compare the results of cerebrum eval"),
    )
)
