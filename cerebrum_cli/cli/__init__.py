"""The command line: what a package adds to it, the commands of the core, and what all commands share."""

from __future__ import annotations

from typing import NamedTuple

DESCRIPTION = "Chat with language models on your own computer, from the terminal."
EPILOG = "Every setting can also be set as CEREBRUM_...: --max-tokens is CEREBRUM_MAX_TOKENS."


class Command(NamedTuple):
    """A command: its name, the module and the class, group or Typer app in it, and its summary.

    The module is imported when the command, its help or its completion is wanted.
    """

    name: str
    module: str
    attribute: str
    summary: str


class Extension(NamedTuple):
    """What a package adds, which its module `extension` describes without importing more.

    All else is named as "MODULE:NAME". `distribute` answers rows on a Ray cluster. `open_servers` gives what finds the
    functions of MCP servers. `model_builder` is a `library.pull.ModelBuilder`. `run_details` is a function of a
    run's model and objects: what else its report says, if anything.
    """

    commands: tuple[Command, ...] = ()
    distribute: str = ""
    open_servers: str = ""
    model_builder: str = ""
    run_details: str = ""


COMMANDS = (
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
)
