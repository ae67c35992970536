"""The command line: the table of all commands; a module for each has its signature and runs it."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command: its name, the module below this one and the function or Typer app in it, its summary and examples."""

    name: str
    module: str
    attribute: str
    summary: str
    examples: tuple[str, ...]


COMMANDS = (
    Command(
        "ask",
        "ask",
        "ask",
        "Answer one question",
        (
            'cerebrum ask "Why is the sky blue?"',
            'git diff | cerebrum ask "Write a commit message for this change"',
            'cerebrum ask "What is 15% of 80?" --votes 8 --final',
        ),
    ),
    Command(
        "chat",
        "chat",
        "chat",
        "Chat interactively",
        ("cerebrum chat", "cerebrum chat -m cerebrum-7b --session physics", "cerebrum chat -c"),
    ),
    Command(
        "batch",
        "batch",
        "batch",
        "Answer many questions from a file",
        (
            "cerebrum batch questions.txt -o answers.jsonl",
            'cerebrum batch rows.csv -o out.jsonl --template "Sum up: {text}"',
            "cerebrum batch exam.jsonl -o out.jsonl --votes auto:3..16",
        ),
    ),
    Command(
        "eval",
        "eval",
        "evaluate_model",
        "Measure how well a model answers",
        (
            "cerebrum eval gsm8k -m cerebrum-7b --limit 200",
            "cerebrum eval exam.jsonl -m cerebrum-7b:Q8_0 --samples 8",
        ),
    ),
    Command(
        "lm-eval",
        "lm_eval",
        "lm_eval",
        "Run tasks of lm-evaluation-harness",
        ("cerebrum lm-eval arc_easy piqa -m cerebrum-7b --limit 200",),
    ),
    Command(
        "pull",
        "models",
        "pull",
        "Download a model, or register a local file",
        (
            "cerebrum pull cerebrum-7b",
            "cerebrum pull owner/repo:Q5_K_M --name mine",
            "cerebrum pull --dry-run cerebrum-8x7b",
        ),
    ),
    Command("list", "models", "list_models", "List installed models", ("cerebrum list", "cerebrum list --available")),
    Command(
        "show",
        "models",
        "show",
        "Show a model's metadata and prompt format",
        ("cerebrum show starter", "cerebrum show cerebrum-7b --json"),
    ),
    Command("rm", "models", "rm", "Delete a model", ("cerebrum rm starter", "cerebrum rm -y cerebrum-7b:Q4_K_M")),
    Command(
        "merge",
        "merge",
        "merge",
        "Merge models from a recipe",
        (
            "cerebrum merge recipe.yaml -o merged.gguf --dry-run",
            "cerebrum merge recipe.yaml -o merged.gguf --source author/7b=cerebrum-7b",
        ),
    ),
    Command(
        "tune",
        "tune",
        "tune",
        "Find the fastest settings for a model",
        ("cerebrum tune cerebrum-7b",),
    ),
    Command(
        "doctor",
        "doctor",
        "doctor",
        "Check the whole installation",
        ("cerebrum doctor", "cerebrum doctor --endpoint http://localhost:8080 -m starter"),
    ),
    Command(
        "runs",
        "runs",
        "group",
        "Show and compare the results of cerebrum eval",
        (
            "cerebrum runs list",
            "cerebrum runs compare exam-a-Q4_0 exam-a-Q8_0",
            "cerebrum runs show exam-a-Q8_0 --plot votes.png",
        ),
    ),
    Command(
        "sessions",
        "sessions",
        "group",
        "List, search, export and delete saved sessions",
        ("cerebrum sessions list", 'cerebrum sessions search "sky"', "cerebrum sessions export physics > physics.md"),
    ),
    Command(
        "prompts",
        "prompts",
        "group",
        "List, show, edit and delete saved prompts",
        (
            "cerebrum prompts edit commit",
            'cerebrum ask -s "Translate into French." --save-prompt french',
            "git diff | cerebrum ask -p commit",
        ),
    ),
)
