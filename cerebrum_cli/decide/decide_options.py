"""The options of `cerebrum decide`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.cli.options import file_option, json_option
from cerebrum_cli.cli.row_commands import ConcurrencyOptions, RowFileOptions
from cerebrum_cli.core.ask import MAX_VOTES
from cerebrum_cli.core.declaration import INTEGER, NUMBER, PATH, option, option_group, switch
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.decide.choice_questions import require_listing
from cerebrum_cli.decide.given_choices import GivenChoices, parse_choices, parse_score

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.replies.source import ModelSource

SLOTS = 32  # prompts that are evaluated together, in large steps


@option_group
class DecideOptions(RowFileOptions, ConcurrencyOptions):
    """What is chosen from, where decisions go, and which are kept."""

    output: Path | None = option(
        "Decisions: .jsonl, .csv, .tsv; `-`: standard output [default with --label: INPUT-MODEL-DIGEST.jsonl]",
        "Output",
        PATH,
        short="-o",
        metavar="OUTPUT",
    )
    calibration: Path | None = option(
        "Use the labelled rows that --calibrate wrote to this file", "Output", PATH, metavar="FILE"
    )
    max_error: float | None = option(
        "Leave rows undecided so that at most this share of the others is wrong",
        "Output",
        NUMBER,
        least=0.0001,
        most=0.5,
        metavar="SHARE",
    )
    confidence: float | None = option(
        "Confidence of that limit [default: 0.9]", "Output", NUMBER, metavar="SHARE", least=0.5, most=0.9999
    )
    choices: str | None = option(
        "Possible answers, or a file with one on each line [default: yes,no]",
        "Input",
        metavar="A,B[=MEANING],...|FILE",
    )
    score: str | None = option("Answer with a number of this range, such as 1..5", "Input", metavar="A..B")
    letters: bool = switch("List the choices after letters: compare both with --label", "Input")
    votes: int | None = option(
        "Sample K replies, for a model that reasons: a probability is a share of them",
        "Sampling",
        INTEGER,
        metavar="K",
        least=2,
        most=MAX_VOTES,
    )
    file: tuple[Path | str, ...] = file_option()
    label: str | None = option("Column with the right answers: measure accuracy", "Output", metavar="COLUMN")
    plot: Path | None = option("With --label: plot errors against the share decided", "Output", PATH, metavar="FILE")
    calibrate: Path | None = option(
        "With --label: write the labelled rows to this file, for --calibration", "Output", PATH, metavar="FILE"
    )
    undecided_of: Path | None = option(
        "Decide only the rows that this earlier OUTPUT leaves undecided", "Input", PATH, metavar="OUTPUT"
    )
    probabilities: bool = switch("Write the probability of each choice", "Output")
    json: bool = json_option()

    def find_choices(self) -> GivenChoices | None:
        """The choices that are given; None without any. Raises UsageError."""
        if self.choices is not None and self.score is not None:
            raise UsageError.conflict("--choices", "--score")
        require_listing(self.letters, self.votes, self.score is not None, prefix="--")
        if self.choices is not None:
            return parse_choices(self.choices)
        return parse_score(self.score) if self.score is not None else None

    def decision_source(self, app: App) -> ModelSource:
        """The source of decisions; without votes, with a context in which prompts share what they have in common."""
        from cerebrum_cli.engine.requests import ContextOptions

        source = self.find_source(app, self.overrides)
        if self.votes:
            return source.for_samples("--votes")
        context = ContextOptions(slots=self.window or SLOTS, kv_unified=True, swa_full=True)
        return replace(source, context=context)
