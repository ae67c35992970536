"""Decide labelled rows: how good is a model at this question, and what do its probabilities mean?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cerebrum_cli.cli.row_commands import answer_run
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import to_json
from cerebrum_cli.core.text import format_count, text_digest
from cerebrum_cli.decide.decided_rows import is_empty
from cerebrum_cli.eval.decisions import calibration_of, names_of
from cerebrum_cli.eval.plot import require_picture
from cerebrum_cli.eval.runs import MATCH, TASK, provenance, read_run, run_path
from cerebrum_cli.eval.runs_command import print_run
from cerebrum_cli.rows.input_file import STANDARD
from cerebrum_cli.rows.record import Record
from cerebrum_cli.trust.calibration import Calibration
from cerebrum_cli.trust.calibration_file import require_replaceable, save_calibration

if TYPE_CHECKING:
    from pathlib import Path

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.decide.decide_options import DecideOptions
    from cerebrum_cli.decide.decision_run import DecisionRun
    from cerebrum_cli.decide.trusted import Trust
    from cerebrum_cli.eval.runs import SavedRun
    from cerebrum_cli.rows.row import InputRow
    from cerebrum_cli.rows.run import Run


def measure(app: App, run: DecisionRun, source: Path, options: DecideOptions) -> Run:
    """Decide labelled rows of a file, print a report, and calibrate. Raises Interrupted with how to resume."""
    trust = run.asker.trust
    if options.output == STANDARD:
        raise UsageError("--label cannot stream to standard output", "omit -o; use --json to print the report")
    if options.calibrate:
        if trust:
            raise UsageError.conflict("--calibrate", "--calibration")
        require_replaceable(options.calibrate)
    if options.plot:
        require_picture(options.plot)
    keep_labelled(app, run, options.label or "")
    run = replace(run, labelling={TASK: source.stem, "label": options.label, **provenance(run.model)})
    asked = text_digest(to_json(run.conditions))  # another question is another file
    path = options.output or run_path(source.stem, run.model.model.label, asked)
    record = Record(run.conditions, {MATCH: "choice", **run.model.model.adapter_params})
    answered = options.open_run(path, record, run.rows, run.rows.table(path, run.asker.keys), app.streams.answer)
    answer_run(app, run.model, options, answered, run.asker, "rows")
    saved = read_run(path)
    try:
        print_run(app, saved, options.json, options.plot)
    except UsageError as error:
        if not answered.counts.failed:
            raise
        app.streams.error(error)  # no row was decided
    if trust and trust.threshold:
        app.streams.note(measured(trust, saved))
    if options.calibrate:
        calibration = calibration_by(run, saved)
        save_calibration(options.calibrate, calibration)
        rows = format_count(calibration.labelled, "labelled row")
        app.streams.note(f"wrote {options.calibrate}, a calibration by {rows}")
    return answered


def keep_labelled(app: App, run: DecisionRun, label: str) -> None:
    """Leave out the rows of a file without a label, and say how many are measured.

    Raises UsageError for the first row without a right answer: a label that is no choice, or none if no row has one.
    """
    if not run.rows.is_whole:  # rows of a long pipe are read once, and get errors
        return
    labelled, count = set(), 0
    for digest, row in run.rows.rereadable_rows():
        count += 1
        if isinstance(row.input, dict) and not is_empty(row.input.get(label)):
            require_label(run, row)
            labelled.add(digest)
    if not labelled:
        _, first = next(run.rows.rereadable_rows())
        require_label(run, first)
    if len(labelled) < count:
        run.rows.keep(labelled)
        app.streams.note(f"{len(labelled):,} of {count:,} rows have a label; the others are left out")


def require_label(run: DecisionRun, row: InputRow) -> None:
    try:
        run.asker.reference_of(row.input)
    except UsageError as problem:
        raise UsageError(f"row {row.id}: {problem.message}", problem.hint) from problem


def calibration_by(run: DecisionRun, saved: SavedRun) -> Calibration:
    """The calibration by finished rows. Raises UsageError for rows with choices of their own, and without any."""
    rows, names = [row for row in saved.rows if row.has_reply], run.asker.given.names
    if rows and {*names_of(rows)} != {*names}:
        raise UsageError("rows with choices of their own cannot be calibrated", "give all the same: --choices")
    return calibration_of(rows, names, run.calibrated_conditions)


def measured(trust: Trust, saved: SavedRun) -> str:
    """How many labelled rows a threshold decides, and how many of these are wrong."""
    decided = [row for row in saved.rows if row.answer is not None]
    wrong = sum(row.answer not in row.references for row in decided)
    if not decided:
        return f"0 of {len(saved.rows):,} rows decided"
    share = f"{wrong:,} of them wrong ({wrong / len(decided):.1%})"
    return f"{len(decided):,} of {len(saved.rows):,} rows decided, {share}; {trust.promise}"
