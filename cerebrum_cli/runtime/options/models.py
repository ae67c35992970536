"""Options of `list`, `show`, `pull`, `rm` and `doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.options import option
from cerebrum_cli.runtime.options.shared import PullOptions, QuietOptions


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
class PullCommandOptions(PullOptions):
    """Options of `cerebrum pull`."""

    name: str | None = option(None, "Name for the model", "Model", metavar="NAME")
    default: bool = option(False, "Make this the default model", "Model")
    dry_run: bool = option(False, "Show what is available and fits; download nothing", "Output")
    json: bool = option(False, "Print JSON", "Output")
