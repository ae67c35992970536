"""The command line: the commands of the core, and what all commands share."""

from __future__ import annotations

from cerebrum_cli.core.extensions import Command

COMMANDS = (
    Command("ask", "cerebrum_cli.cli.ask", "ask", "Answer one question"),
    Command("chat", "cerebrum_cli.cli.chat", "chat", "Chat interactively", {"--votes": "type /votes K in the chat"}),
    Command("batch", "cerebrum_cli.cli.batch", "batch", "Answer many questions from a file"),
    Command("search", "cerebrum_cli.cli.models", "search", "Search the Hugging Face Hub for models"),
    Command("pull", "cerebrum_cli.cli.models", "pull", "Download a model, or register a local file"),
    Command("list", "cerebrum_cli.cli.models", "list_models", "List installed models"),
    Command("show", "cerebrum_cli.cli.models", "show", "Show a model's metadata and prompt format"),
    Command("rm", "cerebrum_cli.cli.models", "rm", "Delete a model"),
    Command("sessions", "cerebrum_cli.cli.sessions", "group", "List, search, export and delete saved sessions"),
    Command("prompts", "cerebrum_cli.cli.prompts", "group", "List, show, edit and delete saved prompts"),
)
