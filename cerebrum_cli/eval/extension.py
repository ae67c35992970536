"""The commands of evaluations."""

from cerebrum_cli.cli import Command, Extension

VOTES = {"--votes": "use --samples K: maj@K is the accuracy of votes"}
EXTENSION = Extension(
    commands=(
        Command("eval", "cerebrum_cli.eval.eval_command", "evaluate_model", "Measure how well a model answers", VOTES),
        Command("lm-eval", "cerebrum_cli.eval.lm_eval_command", "lm_eval", "Run tasks of lm-evaluation-harness"),
        Command("runs", "cerebrum_cli.eval.runs_command", "group", "Show and compare the results of cerebrum eval"),
    )
)
