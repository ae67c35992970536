"""The command line: its commands, and what they share."""

from __future__ import annotations

from typing import NamedTuple

DESCRIPTION = "Chat with language models on your own computer, from the terminal."
EPILOG = "Every setting can also be set as CEREBRUM_...: --max-tokens is CEREBRUM_MAX_TOKENS."


class Command(NamedTuple):
    """A command: its name, the module and the class, group or Typer app in it, and its summary.

    The module is imported when the command, its help or its completion is wanted. Packages from outside name a tuple of
    commands by an entry point of the group `cerebrum.commands`.
    """

    name: str
    module: str
    attribute: str
    summary: str


_COMMANDS = (
    Command("chat", "cerebrum_cli.cli.chat", "ChatCommand", "Chat with a model"),
    Command("ask", "cerebrum_cli.cli.ask", "AskCommand", "Answer one question, also in a pipe"),
    Command("batch", "cerebrum_cli.cli.batch", "BatchCommand", "Answer the prompts in a file"),
    Command("pull", "cerebrum_cli.cli.pull", "PullCommand", "Download a model, or register a local file"),
    Command("list", "cerebrum_cli.cli.models", "ListCommand", "List installed models"),
    Command("show", "cerebrum_cli.cli.models", "ShowCommand", "Show a model's metadata and prompt format"),
    Command("rm", "cerebrum_cli.cli.models", "RmCommand", "Delete a model"),
    Command("search", "cerebrum_cli.cli.pull", "SearchCommand", "Search the Hugging Face Hub for models"),
    Command("sessions", "cerebrum_cli.cli.sessions", "GROUP", "List, search, show and delete saved sessions"),
    Command("config", "cerebrum_cli.cli.configuration", "ConfigCommand", "List and change the settings in config.toml"),
    Command("prompts", "cerebrum_cli.cli.prompts", "GROUP", "List, show, edit and delete saved prompts"),
    Command(
        "decide",
        "cerebrum_cli.decide.decide_command",
        "DecideCommand",
        "Choose among given answers, with a probability",
    ),
    Command("doctor", "cerebrum_cli.doctor.doctor_command", "DoctorCommand", "Check the whole installation"),
    Command("eval", "cerebrum_cli.eval.eval_command", "EvalCommand", "Measure how well a model answers"),
    Command("runs", "cerebrum_cli.eval.runs_command", "GROUP", "Show and compare the results of cerebrum eval"),
    Command("lm-eval", "cerebrum_cli.lm_eval.lm_eval_command", "LmEvalCommand", "Run tasks of lm-evaluation-harness"),
    Command("merge", "cerebrum_cli.weights.merge_command", "MergeCommand", "Merge models from a recipe"),
)
COMMANDS = {command.name: command for command in _COMMANDS}  # in the order of help
