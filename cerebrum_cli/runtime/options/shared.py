"""Option groups that several commands share."""

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
class DeleteOptions(QuietOptions):
    """Options of commands that delete something."""

    yes: bool = option(False, "Delete without asking", "Input", short="-y")


@dataclass(frozen=True)
class PullOptions(QuietOptions):
    """Options of commands that download a model which is not installed."""

    offline: bool = option(False, "Do not use the network", "Model")
    yes: bool = option(False, "Answer yes to every question", "Input", short="-y")


@dataclass(frozen=True)
class AnswerOptions(PullOptions):
    """Options of commands that generate text."""

    template_arg: tuple[str, ...] = option(
        (), "Variable for the embedded template (repeatable)", "Model", metavar="KEY=VALUE"
    )
    no_profile: bool = option(False, "Ignore the tuning profile and any re-encoded copy", "Speed")
    verbose: bool = option(False, "Show llama.cpp's log on standard error", "Output", short="-v")


@dataclass(frozen=True)
class GenerationOptions(AnswerOptions):
    """Options of commands that answer with votes or constraints."""

    votes: str | None = option(
        None, "Sample K answers and take the majority; auto stops early", "Sampling", metavar="K|auto[:A..B]"
    )
    no_early_stop: bool = option(False, "Sample all votes even once the outcome is certain", "Sampling")
    schema: Path | None = option(None, "Constrain the answer to a JSON Schema", "Output", metavar="FILE")
    grammar: Path | None = option(None, "Constrain the answer to a GBNF grammar", "Output", metavar="FILE")

    @property
    def wanted(self) -> Votes | None:
        """How many votes to sample; None for a single answer. Raises UsageError."""
        if self.votes is None:
            if self.no_early_stop:
                raise UsageError("--no-early-stop without --votes", "add --votes K")
            return None
        from cerebrum_cli.answers.vote import parse_votes

        return parse_votes(self.votes)
