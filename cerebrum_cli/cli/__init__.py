"""The command line: the table of all commands; a module for each has its signature and runs it."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command: its name, the module below this one and the function or Typer app in it, and its summary."""

    name: str
    module: str
    attribute: str
    summary: str


COMMANDS = (
    Command("ask", "ask", "ask", "Answer one question"),
    Command("chat", "chat", "chat", "Chat interactively"),
    Command("batch", "batch", "batch", "Answer many questions from a file"),
    Command("eval", "eval", "evaluate_model", "Measure how well a model answers"),
    Command("lm-eval", "lm_eval", "lm_eval", "Run tasks of lm-evaluation-harness"),
    Command("search", "models", "search", "Search the Hugging Face Hub for models"),
    Command("pull", "models", "pull", "Download a model, or register a local file"),
    Command("list", "models", "list_models", "List installed models"),
    Command("show", "models", "show", "Show a model's metadata and prompt format"),
    Command("rm", "models", "rm", "Delete a model"),
    Command("merge", "merge", "merge", "Merge models from a recipe"),
    Command("doctor", "doctor", "doctor", "Check the whole installation"),
    Command("runs", "runs", "group", "Show and compare the results of cerebrum eval"),
    Command("sessions", "sessions", "group", "List, search, export and delete saved sessions"),
    Command("prompts", "prompts", "group", "List, show, edit and delete saved prompts"),
)
