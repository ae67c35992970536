"""The command that decides, and what it adds to the report of a run."""

from cerebrum_cli.cli import Command, Extension

EXTENSION = Extension(
    commands=(
        Command(
            "decide",
            "cerebrum_cli.decide.decide_command",
            "DecideCommand",
            "Choose among given answers, with a probability",
        ),
    ),
    run_details="cerebrum_cli.decide.measures:run_measures",
)
