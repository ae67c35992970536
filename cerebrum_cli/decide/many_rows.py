"""Decide the rows of a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.batch.readers import InputOptions
from cerebrum_cli.core.declaration import flag
from cerebrum_cli.core.errors import DAMAGE, SOME_FAILED, UsageError
from cerebrum_cli.core.files import readable
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.row_fields import parse_template
from cerebrum_cli.decide.choice_questions import placed_question
from cerebrum_cli.decide.decided_rows import DecisionAsker, has_own_choices, row_flags
from cerebrum_cli.decide.decision_run import STANDARD, DecisionRun
from cerebrum_cli.decide.given_choices import YES_OR_NO
from cerebrum_cli.decide.trusted import final_notes, load_trust
from cerebrum_cli.results.output_tables import read_table, table_type
from cerebrum_cli.results.results import output_paths
from cerebrum_cli.results.rows import Digest, Key, RowFlag
from cerebrum_cli.results.saved import read_saved
from cerebrum_cli.trust.calibration import HOW_TO_MAKE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.decide.decide_options import DecideOptions
    from cerebrum_cli.results.rows import Results


def decide_file(app: App, question: str, source: Path, options: DecideOptions) -> None:
    """Decide the rows of a file that have no decision yet. Raises Interrupted with how to resume, and Exit."""
    require_related_options(options)
    output = options.output or STANDARD
    if output != STANDARD:
        output_paths(output, None if source == STANDARD else source)
    only = None
    if options.undecided_of:
        only = undecided_rows(options.undecided_of)
        if not only:
            app.streams.note(f"no row of {options.undecided_of} is undecided")
            return
    template = parse_template(question) if "{" in question or "}" in question else None
    reading = InputOptions(
        template,
        options.delimiter,
        include_input=True,
        template_use='name a column in QUESTION: "... {NAME}"',
        has_settings=False,
        only=only,
    )
    with reading.open(source, app.streams.piped, output) as rows:
        is_table = table_type(output) is not None
        choices = options.find_choices()
        if choices == YES_OR_NO and rows.is_whole and not any(map(has_own_choices, rows)):
            choices = None  # the same question
        asker = DecisionAsker(
            "" if template else question,
            template.fields if template else (),
            choices,
            placed_question(question),
            options.letters,
            votes=options.votes,
            label=options.label,
            writes_all=options.probabilities or options.label is not None,
            copies_input=is_table and rows.columns is not None,
            is_table=is_table,
        )
        run = DecisionRun(rows, asker, options.decision_source(app), output)
        if options.calibration:
            found = load_trust(options.calibration, run.calibrated_conditions, options.max_error, options.confidence)
            run = replace(run, asker=replace(asker, trust=found))
        if options.label is None:
            results = write_decisions(app, run, options)
        else:
            from cerebrum_cli.decide.labelled import measure

            results = measure(app, run, source, options)
    if results.counts.failed:
        raise typer.Exit(SOME_FAILED)


def require_related_options(options: DecideOptions) -> None:
    """Raise UsageError for an option without the one that it belongs to."""
    if options.output is None and options.label is None:
        raise UsageError("missing option '-o' / '--output'", "see cerebrum decide --help")
    for name in ("calibrate", "plot"):
        if getattr(options, name) and options.label is None:
            problem = f"{flag(name)} requires --label"
            raise UsageError(problem, "name the column with the right answers: --label COLUMN")
    if options.max_error is not None and options.calibration is None:
        raise UsageError("--max-error requires --calibration", HOW_TO_MAKE)
    if options.confidence is not None and options.max_error is None:
        raise UsageError("--confidence requires --max-error", "say which share of wrong answers is acceptable")


def undecided_rows(output: Path) -> frozenset[Digest]:
    """The digests of the rows that an earlier output leaves undecided. Raises UsageError."""
    with readable(output), output.open("rb") as file:
        objects = read_table(output, ()) if table_type(output) else map(json.loads, file)
        try:
            keys = []
            for object in objects:
                keys.append(Key.parse(object["key"]))
                if not {"answer", "probability"} <= object.keys():
                    raise not_decisions(output)
        except DAMAGE as error:
            raise not_decisions(output) from error
    return frozenset(key.digest for key in keys if key.flags & RowFlag.UNDECIDED)


def not_decisions(output: Path) -> UsageError:
    return UsageError(f"{output} is not a result of cerebrum decide", "name an earlier OUTPUT")


def probabilities_of(objects: Iterable[JsonObject]) -> Iterator[float]:
    """The probabilities of decided rows, which a table has as text."""
    for object in objects:
        if object["probability"] is not None:
            yield float(object["probability"])


def write_decisions(app: App, run: DecisionRun, options: DecideOptions) -> Results:
    """Decide the rows that the output lacks, and say what is promised of all rows that it has then."""
    trust = run.asker.trust
    streamed: list[float] = []

    def flags(object: JsonObject) -> int:  # of each row that is written, wherever it was decided
        if run.output == STANDARD and object["probability"] is not None:
            streamed.append(object["probability"])
        return row_flags(object)

    results = run.decide(app, options, replace(run.kind, flags=flags))
    if trust:
        saved = None if run.output == STANDARD else read_saved(run.output)
        probabilities = [*probabilities_of(saved.objects())] if saved else streamed
        decided = results.size - results.counts.undecided - results.counts.failed
        for line in final_notes(trust, probabilities, decided, results.size):
            app.streams.note(line)
    return results
