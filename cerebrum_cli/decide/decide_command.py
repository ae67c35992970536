"""`cerebrum decide`: choose among given answers, for one text or for many rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.cli.command import argument, settings_options
from cerebrum_cli.core.declaration import flag, option_group
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import LOAD_KEYS
from cerebrum_cli.decide.decide_options import DecideOptions

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App

OF_VOTES = ("temperature", "seed", "max_tokens", "think")
OF_TRUST = ("calibrate", "calibration", "max_error", "confidence", "undecided_of")
OF_ROWS = (
    "delimiter",
    "label",
    "plot",
    "probabilities",
    "restart",
    "retry_failed",
    *OF_TRUST,
)


@option_group
class DecideCommand(DecideOptions):
    """The text comes from standard input or -f. With INPUT, each row is decided; {NAME} in QUESTION is a field of it.

    The answer is the likeliest choice. Models favor certain positions in a list, so they are asked in several orders.

    Examples:
      cerebrum decide "Is a refund requested?" < ticket.txt
      cerebrum decide "Which team?" --choices billing,technical,other -f ticket.txt --json
      cerebrum decide "How urgent is this? {text}" tickets.csv --score 1..5 -o out.csv
      cerebrum decide "Spam? {text}" labelled.csv --label spam --calibrate spam.json
      cerebrum decide "Spam? {text}" all.csv -o out.csv --calibration spam.json --max-error 0.05
    """

    settings = settings_options((*LOAD_KEYS, *OF_VOTES))
    words: list[str] = argument(
        "[QUESTION] [INPUT]",
        "The question; rows in .txt, .jsonl, .csv, .tsv, .parquet; `-`: standard input",
        is_list=True,
        is_required=False,
    )

    def run(self, app: App) -> None:
        if self.votes is None and (needless := [flag(name) for name in OF_VOTES if name in self.overrides.typed]):
            raise UsageError(f"{needless[0]} applies only to votes", "omit it, or add --votes K")
        question, *inputs = self.words or [""]
        question = question.strip()
        if not question:
            raise UsageError("no question given", 'give one: cerebrum decide "Is a refund requested?" < ticket.txt')
        if len(inputs) > 1:
            raise UsageError(f"unexpected argument: {' '.join(inputs[1:])}", "quote the question")
        if inputs:
            from cerebrum_cli.decide.many_rows import decide_file

            if self.file:
                raise UsageError("-f and INPUT cannot be used together", "omit one of them")
            decide_file(app, question, Path(inputs[0]), self)
            return
        from cerebrum_cli.decide.one_text import decide_text

        needless = [flag(name) for name in OF_ROWS if getattr(self, name)]
        if self.output:
            needless.insert(0, "-o")
        if needless:
            raise UsageError(
                f"{needless[0]} applies to the rows of a file", "name the file after the question, or omit it"
            )
        decide_text(app, question, self)
