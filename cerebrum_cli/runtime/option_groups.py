"""Option groups of the commands: dataclasses whose fields are the command-line options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.options import option

if TYPE_CHECKING:
    from cerebrum_cli.answers.vote import Votes


@dataclass(frozen=True)
class QuietOptions:
    """Options of every command that prints notices."""

    quiet: bool = option(False, "No notices or progress on standard error", "Output", short="-q")


@dataclass(frozen=True)
class ReportOptions(QuietOptions):
    """Options of commands that print a report."""

    offline: bool = option(False, "Do not use the network", "Model")
    json: bool = option(False, "Print JSON", "Output")


@dataclass(frozen=True)
class ListOptions(ReportOptions):
    """Options of `cerebrum list`."""

    available: bool = option(False, "List the whole catalogue and what fits this machine", "Model")


@dataclass(frozen=True)
class DeleteOptions(QuietOptions):
    """Options of commands that delete something."""

    yes: bool = option(False, "Delete without asking", "Input", short="-y")


@dataclass(frozen=True)
class PullOptions(QuietOptions):
    """Options of commands that download a model which is not installed."""

    offline: bool = option(False, "Do not use the network", "Model")
    yes: bool = option(False, "Answer yes to every question", "Input", short="-y")


@dataclass(frozen=True)
class PullCommandOptions(PullOptions):
    """Options of `cerebrum pull`."""

    name: str | None = option(None, "Name for the model", "Model", metavar="NAME")
    default: bool = option(False, "Make this the default model", "Model")
    dry_run: bool = option(False, "Show what is available and fits; download nothing", "Output")
    json: bool = option(False, "Print JSON", "Output")


@dataclass(frozen=True)
class AnswerOptions(PullOptions):
    """Options of commands that generate text."""

    template_arg: tuple[str, ...] = option(
        (), "Variable for the embedded template (repeatable)", "Model", metavar="KEY=VALUE"
    )
    no_profile: bool = option(False, "Ignore the tuning profile and any re-encoded copy", "Speed")
    verbose: bool = option(False, "Show llama.cpp's log on standard error", "Output", short="-v")


@dataclass(frozen=True)
class VoteOptions:
    """Options of a majority vote."""

    votes: str | None = option(
        None, "Sample K answers and take the majority; auto stops early", "Sampling", metavar="K|auto[:A..B]"
    )
    no_early_stop: bool = option(False, "Sample all votes even once the outcome is certain", "Sampling")

    @property
    def wanted(self) -> Votes | None:
        """How many votes to sample; None for a single answer. Raises UsageError."""
        if self.votes is None:
            if self.no_early_stop:
                raise UsageError("--no-early-stop without --votes", "add --votes K")
            return None
        from cerebrum_cli.answers.vote import parse_votes

        return parse_votes(self.votes)


@dataclass(frozen=True)
class ConstraintOptions:
    """Options that constrain the text of an answer."""

    schema: Path | None = option(None, "Constrain the answer to a JSON Schema", "Output", metavar="FILE")
    grammar: Path | None = option(None, "Constrain the answer to a GBNF grammar", "Output", metavar="FILE")


@dataclass(frozen=True)
class AskOptions(AnswerOptions, VoteOptions, ConstraintOptions):
    """Options of `cerebrum ask`."""

    file: tuple[Path, ...] = option(
        (), "Put a file before the prompt (repeatable)", "Input", short="-f", metavar="FILE"
    )
    messages: Path | None = option(None, "OpenAI messages list; `-` is standard input", "Input", metavar="FILE")
    raw: bool = option(False, "Complete the prompt as it stands, without a format", "Input")
    continue_: bool = option(False, "Continue the latest session", "Input", short="-c")
    final: bool = option(False, "Print only the final answer; exit 5 without one", "Output")
    json: bool = option(False, "Print one JSON object", "Output")
    stats: bool = option(False, "Print speed, context and seed on standard error", "Output")
    dry_run: bool = option(False, "Print the exact prompt without evaluating it", "Output")
    no_markdown: bool = option(False, "Plain text, on a terminal too", "Output")
    no_log: bool = option(False, "Do not save this exchange as a session", "Output")
    no_cache: bool = option(False, "Do not read or write the prompt cache", "Speed")


@dataclass(frozen=True)
class ChatOptions(AnswerOptions):
    """Options of `cerebrum chat`."""

    continue_: bool = option(False, "Continue the latest session", "Input", short="-c")
    session: str | None = option(None, "Continue this session, or create it", "Input", metavar="NAME")
    vi: bool = option(False, "Edit with vi keys", "Input")
    no_markdown: bool = option(False, "Plain text, on a terminal too", "Output")
    no_cache: bool = option(False, "Do not read or write the prompt cache", "Speed")


@dataclass(frozen=True)
class BatchOptions(AnswerOptions, VoteOptions, ConstraintOptions):
    """Options of `cerebrum batch`, apart from INPUT and OUTPUT."""

    column: str | None = option(None, "Column with the prompts [default: prompt]", "Input", metavar="NAME")
    template: str | None = option(
        None, "Build the prompt from a row's fields: 'Sum up: {text}'", "Input", metavar="TEXT"
    )
    shape: str | None = option(None, "Type of INPUT [default: from its name]", "Input", metavar="txt|jsonl|csv|tsv")
    ignore_eos: bool = option(False, "Generate up to --max-tokens, for benchmarks", "Sampling")
    restart: bool = option(False, "Start over; replace OUTPUT when done", "Output")
    parallel: str | None = option(None, "Rows answered at the same time [default: auto]", "Speed", metavar="N|auto")
