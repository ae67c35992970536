"""Decide the rows of a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.row_commands import answer_run
from cerebrum_cli.core.declaration import flag
from cerebrum_cli.core.errors import DAMAGE, SOME_FAILED, BatchError, UsageError
from cerebrum_cli.core.files import readable
from cerebrum_cli.core.row_fields import parse_template
from cerebrum_cli.decide.choice_questions import placed_question
from cerebrum_cli.decide.decided_rows import CHOICES, DecisionAsker, is_empty
from cerebrum_cli.decide.decision_run import DecisionRun
from cerebrum_cli.decide.given_choices import YES_OR_NO
from cerebrum_cli.decide.trusted import final_notes, load_trust
from cerebrum_cli.rows.input_file import STANDARD
from cerebrum_cli.rows.keys import Digest, RowFlag
from cerebrum_cli.rows.output_tables import table_type
from cerebrum_cli.rows.read import Input, InputOptions
from cerebrum_cli.rows.record import Record
from cerebrum_cli.rows.run import Run, output_paths
from cerebrum_cli.rows.saved import read_saved
from cerebrum_cli.trust.calibration import HOW_TO_MAKE

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.decide.decide_options import DecideOptions


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
    asker = DecisionAsker(
        "" if template else question,
        template.fields if template else (),
        options.find_choices(),
        placed_question(question),
        options.letters,
        votes=options.votes,
        label=options.label,
        writes_all=options.probabilities or options.label is not None,
        is_table=table_type(output) is not None,
        is_calibrated=options.calibration is not None,
    )
    reading = InputOptions(
        template,
        options.delimiter,
        template_use='name a column in QUESTION: "... {NAME}"',
        has_settings=False,
        completed=asker.completed,
        only=only,
    )
    with reading.open(source, app.streams.piped, output) as rows:
        if asker.choices == YES_OR_NO and rows.is_whole and not has_own_choices(rows):
            asker = replace(asker, choices=None)  # the same question
        run = DecisionRun(rows, asker, options.decision_source(app))
        if options.calibration:
            found = load_trust(options.calibration, run.calibrated_conditions, options.max_error, options.confidence)
            run = replace(run, asker=replace(asker, trust=found))
        if options.label is None:
            answered = write_decisions(app, run, output, options)
        else:
            from cerebrum_cli.decide.labelled import measure

            answered = measure(app, run, source, options)
    if answered.counts.failed:
        raise typer.Exit(SOME_FAILED)


def has_own_choices(rows: Input) -> bool:
    return any(
        isinstance(row.input, dict) and not is_empty(row.input.get(CHOICES)) for _, row in rows.rereadable_rows()
    )


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
    try:
        with readable(output):
            output.stat()
            saved = read_saved(output)
            rows = [*saved.rows()] if saved else []
    except (BatchError, *DAMAGE) as error:
        raise not_decisions(output) from error
    if not all({"answer", "probability"} <= object.keys() for object, _ in rows) or not rows:
        raise not_decisions(output)
    undecided = [key for _, key in rows if key.flags & RowFlag.UNDECIDED]
    return frozenset(digest for key in undecided for digest in (key.source, key.asked))


def not_decisions(output: Path) -> UsageError:
    return UsageError(f"{output} is not a result of cerebrum decide", "name an earlier OUTPUT")


def write_decisions(app: App, run: DecisionRun, output: Path, options: DecideOptions) -> Run:
    """Decide the rows that the output lacks, and say what is promised of all rows that it has then."""
    trust = run.asker.trust
    streamed: list[float | None] = []

    def write(line: str) -> None:
        app.streams.answer(line)
        if trust:
            streamed.append(json.loads(line)["probability"])

    record = Record(run.conditions, run.model.model.adapter_params)
    answered = options.open_run(output, record, run.rows, run.rows.table(output, run.asker.keys), write)
    answer_run(app, run.model, options, answered, run.asker, "rows")
    if trust:
        saved = None if output == STANDARD else read_saved(output)
        found = [object["probability"] for object, _ in saved.rows()] if saved else streamed
        probabilities = [float(probability) for probability in found if probability is not None]
        decided = answered.size - answered.counts.undecided - answered.counts.failed
        for line in final_notes(trust, probabilities, decided, answered.size):
            app.streams.note(line)
    return answered
