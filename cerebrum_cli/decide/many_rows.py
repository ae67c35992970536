"""Decide the rows of a file."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.batch.readers import BatchInput, InputOptions
from cerebrum_cli.cli.row_commands import Work, answer_missing, resumable
from cerebrum_cli.core.declaration import flag
from cerebrum_cli.core.errors import DAMAGE, SOME_FAILED, UsageError
from cerebrum_cli.core.files import readable
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.row_fields import parse_template
from cerebrum_cli.decide.conditions import calibrated_conditions, fingerprint_of
from cerebrum_cli.decide.decided_rows import DecisionAsker, row_flags
from cerebrum_cli.decide.trusted import final_notes, load_trust
from cerebrum_cli.results.output_tables import DELIMITERS, table_type
from cerebrum_cli.results.results import open_results, open_stream, output_paths
from cerebrum_cli.results.rows import Digest, Key, RowFlag
from cerebrum_cli.trust.calibration import HOW_TO_MAKE

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.decide.decide_options import DecideOptions
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.results.rows import Results, RowKind

STANDARD = Path("-")  # standard input or output


def decide_file(
    app: App,
    question: str,
    source: Path,
    output: Path | None,
    overrides: Layer,
    options: DecideOptions,
) -> None:
    """Decide the rows of a file that have no decision yet. Raises Interrupted with how to resume, and Exit."""
    if output and output != STANDARD:
        output_paths(output, None if source == STANDARD else source)
    require_trust_options(options)
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
    with reading.open(source, app.streams.piped, output or STANDARD) as rows:
        is_table = output is not None and rows.kind_for(output).table is not None
        asked = DecisionAsker(
            "" if template else question,
            template.fields if template else (),
            options.find_choices(),
            options.letters,
            votes=options.votes,
            writes_all=options.probabilities,
            copies_input=is_table and rows.form.header is not None,
            is_table=is_table,
        )
        model = options.find_source(app, overrides)
        if options.calibration:
            made_with = calibrated_conditions(rows, asked, model)
            trust = load_trust(options.calibration, made_with, options.max_error, options.confidence)
            asked = replace(asked, trust=trust)
        if options.label is not None:
            measure_rows(app, rows, asked, source.stem, model, output, options)
            return
        if output is None:
            raise UsageError("missing option '-o' / '--output'", "see cerebrum decide --help")
        write_decisions(app, rows, asked, model, output, options)


def require_trust_options(options: DecideOptions) -> None:
    """Raise UsageError for an option without the one that it belongs to."""
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
    name = table_type(output)
    with readable(output), output.open(newline="") as file:
        try:
            if name:
                texts = [record["key"] for record in csv.DictReader(file, delimiter=DELIMITERS[name][0])]
            else:
                texts = [json.loads(line)["key"] for line in file]
            keys = [*map(Key.parse, texts)]
        except (csv.Error, *DAMAGE) as error:
            raise UsageError(f"{output} is not a result of cerebrum decide", "name an earlier OUTPUT") from error
    return frozenset(key.digest for key in keys if key.flags & RowFlag.UNDECIDED)


def measure_rows(
    app: App,
    rows: BatchInput,
    asked: DecisionAsker,
    task: str,
    model: ModelSource,
    output: Path | None,
    options: DecideOptions,
) -> None:
    """Compare decisions with labels, as a run of the package `eval`. Raises UsageError without it."""
    try:
        from cerebrum_cli.decide.labelled import measure
    except ModuleNotFoundError as error:
        raise UsageError("--label needs the package `eval`", "install cerebrum-cli again") from error
    measure(app, rows, asked, task, model, output, options)


def write_decisions(
    app: App, rows: BatchInput, asked: DecisionAsker, model: ModelSource, output: Path, options: DecideOptions
) -> None:
    """Decide the rows that the output lacks. Raises Exit if some failed."""
    probabilities: list[float] = []

    def flags(object: JsonObject) -> int:  # of each row that is written, wherever it was decided
        if asked.trust and object["probability"] is not None:
            probabilities.append(object["probability"])
        return row_flags(object)

    kind = replace(rows.kind_for(output, asked.keys), flags=flags)
    results = open_decisions(app, rows, asked, model, output, kind, options)
    results.has_more = not rows.is_whole
    with resumable(results, "rows", options.restart):
        answer_missing(app, model, options, results, Work(rows.missing_rows, asked))
    counts = results.counts
    if asked.trust:
        decided = results.size - counts.undecided - counts.failed
        for line in final_notes(asked.trust, probabilities, decided, results.size):
            app.streams.note(line)
    if counts.failed:
        raise typer.Exit(SOME_FAILED)


def open_decisions(
    app: App,
    rows: BatchInput,
    asked: DecisionAsker,
    model: ModelSource,
    output: Path,
    kind: RowKind,
    options: DecideOptions,
) -> Results:
    """The result, with the rows that earlier runs decided. Raises UsageError, BatchError."""
    if output != STANDARD:
        fingerprint = fingerprint_of(rows, asked, model)
        notes = model.model.adapter_params
        return open_results(output, fingerprint, kind, rows.known_rows(), options.restart, options.retry_failed, notes)
    if options.retry_failed:
        raise UsageError("--retry-failed requires a file with earlier decisions", "give it as -o OUTPUT")
    return open_stream(app.streams.answer, kind, rows.known_rows())
