"""The command of lm-evaluation-harness."""

from cerebrum_cli.cli import Command, Extension

EXTENSION = Extension(
    commands=(
        Command(
            "lm-eval",
            "cerebrum_cli.lm_eval.lm_eval_command",
            "LmEvalCommand",
            "Run tasks of lm-evaluation-harness",
        ),
    )
)
