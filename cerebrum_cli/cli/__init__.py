"""The command line: what a package adds to it, the commands of the core, and what all commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Command(NamedTuple):
    """A command: its name, the module and the function or Typer app in it, and its summary.

    The module is imported when the command, its help or its completion is wanted. `hints` say what does the same as an
    option that other commands have.
    """

    name: str
    module: str
    attribute: str
    summary: str
    hints: Mapping[str, str] = {}


class Extension(NamedTuple):
    """What a package adds, which its module `extension` describes without importing more.

    `row_options` is a subclass of `cli.row_commands.RowOptions`, as "MODULE:NAME": further options of commands that
    answer rows, and where it answers them. `model_builder` is a `library.pull.ModelBuilder`, as "MODULE:NAME".
    `run_details` is a function of a run's samples, as "MODULE:NAME": what else the report of a run says, if anything.
    """

    commands: tuple[Command, ...] = ()
    row_options: str = ""
    model_builder: str = ""
    run_details: str = ""


COMMANDS = (
    Command(
        "chat",
        "cerebrum_cli.cli.chat",
        "chat",
        "Chat with a model",
        {
            "--votes": "use cerebrum ask --votes K",
            "--verbose": "type /stats in the chat; --set verbose=on shows llama.cpp's log",
            "-o": "did you mean --set KEY=VALUE?",
        },
    ),
    Command(
        "ask",
        "cerebrum_cli.cli.ask",
        "ask",
        "Answer one question, also in a pipe",
        dict.fromkeys(("-o", "--output"), "redirect the output: ... > FILE; a setting is --set KEY=VALUE"),
    ),
    Command(
        "batch",
        "cerebrum_cli.cli.batch",
        "batch",
        "Answer the prompts in a file",
        {"--prompt": 'did you mean --template "... {text}"?'},
    ),
    Command("pull", "cerebrum_cli.cli.pull", "pull", "Download a model, or register a local file"),
    Command("list", "cerebrum_cli.cli.models", "list_models", "List installed models"),
    Command("show", "cerebrum_cli.cli.models", "show", "Show a model's metadata and prompt format"),
    Command("rm", "cerebrum_cli.cli.models", "rm", "Delete a model"),
    Command("search", "cerebrum_cli.cli.pull", "search", "Search the Hugging Face Hub for models"),
    Command("sessions", "cerebrum_cli.cli.sessions", "group", "List, search, show and delete saved sessions"),
    Command("config", "cerebrum_cli.cli.configuration", "config", "List and change the settings in config.toml"),
    Command("prompts", "cerebrum_cli.cli.prompts", "group", "List, show, edit and delete saved prompts"),
)
