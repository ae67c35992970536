"""Decide labelled rows, as a run: how good is a model at this question?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cerebrum_cli.batch.readers import BatchInput
from cerebrum_cli.cli.row_commands import Work, answer_missing, resumable
from cerebrum_cli.core.decision import PLACES, Decision
from cerebrum_cli.core.declaration import flag
from cerebrum_cli.core.errors import SOME_FAILED, CerebrumError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.row_fields import RowError, field_text
from cerebrum_cli.core.text import Texts, format_count, format_names, truncate
from cerebrum_cli.decide.conditions import calibrated_conditions, fingerprint_of
from cerebrum_cli.decide.decided_rows import LINE, DecisionAsker, decision_values, row_flags
from cerebrum_cli.decide.given_choices import SHOWN, GivenChoices
from cerebrum_cli.decide.measures import PROBABILITIES, Labelled, labelled_decisions, labelled_rows
from cerebrum_cli.eval.plot import require_image
from cerebrum_cli.eval.runs import MATCH, REFERENCE, TASK, provenance, read_run, require_run_file, run_path
from cerebrum_cli.eval.runs_command import print_run
from cerebrum_cli.results.results import open_results
from cerebrum_cli.trust.calibration import Calibration, calibrate
from cerebrum_cli.trust.calibration_file import require_replaceable, save_calibration

if TYPE_CHECKING:
    from cerebrum_cli.batch.input_row import InputRow
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.json_types import JsonObject
    from cerebrum_cli.decide.decide_options import DecideOptions
    from cerebrum_cli.decide.trusted import Trust
    from cerebrum_cli.replies.source import ModelSource


@frozen
class LabelledAsker(DecisionAsker):
    """Asks rows with the names of the right choices."""

    labels: Texts = ()

    def object(self, position: int, row: InputRow, result: Decision | CerebrumError) -> JsonDict:
        object: JsonDict = {"id": row.id, "prompt": row.prompt, "answer": None, "probability": None, "error": None}
        object[REFERENCE] = self.labels[position]
        if isinstance(result, CerebrumError):
            return object | {LINE: row.number, "error": asdict(row.error or RowError.of(result))}
        if self.trust:
            result = self.trust.calibrated(result)
        pairs = zip(result.names, result.probabilities, strict=True)
        probabilities = {name: round(probability, PLACES) for name, probability in pairs}
        return object | decision_values(result, writes_all=False) | {PROBABILITIES: probabilities}


def measure(
    app: App,
    rows: BatchInput,
    asked: DecisionAsker,
    task: str,
    model: ModelSource,
    output: Path | None,
    options: DecideOptions,
) -> None:
    """Decide the labelled rows that the run lacks, and print its report. Raises Interrupted with how to resume."""
    for name in ("probabilities", "retry_failed"):
        if getattr(options, name):
            raise UsageError.conflict("--label", flag(name))
    trust = asked.trust
    if options.calibrate and trust:
        raise UsageError.conflict("--calibrate", "--calibration")
    if options.calibrate:
        require_replaceable(options.calibrate)
    if output:
        require_run_file(output)
    if options.plot:
        require_image(options.plot)
    values = {field.name: getattr(asked, field.name) for field in fields(DecisionAsker)}
    labelled = LabelledAsker(**values, labels=read_labels(rows, asked, options.label or ""))
    fingerprint = {TASK: task, **fingerprint_of(rows, asked, model), MATCH: "exact", **provenance(model)}
    path = output or run_path(task, model.model.label)
    kind = replace(rows.kind_for(path), flags=row_flags)
    results = open_results(path, {**fingerprint, "label": options.label}, kind, rows.known_rows(), options.restart)
    with resumable(results, "rows", options.restart):
        answer_missing(app, model, options, results, Work(rows.missing_rows, labelled))
    run = read_run(path)
    try:
        print_run(app, run, options.json, options.plot)
    except UsageError as error:  # no row was decided
        app.streams.error(error)
    decided = labelled_rows(run.model, run.objects)
    if trust and trust.threshold:
        app.streams.note(measured(trust, decided))
    if options.calibrate:
        calibration = calibration_of(decided, asked.given.names, calibrated_conditions(rows, asked, model))
        save_calibration(options.calibrate, calibration)
        count = format_count(calibration.labelled, "labelled row")
        app.streams.note(f"wrote {options.calibrate}, a calibration by {count}")
    if results.counts.failed:
        raise typer.Exit(SOME_FAILED)


def calibration_of(rows: Sequence[Labelled], choices: Texts, made_with: JsonObject) -> Calibration:
    """The calibration by a run. Raises UsageError for rows with choices of their own, and without any."""
    decided = [row for row in rows if row.probabilities]
    if any(set(row.probabilities) != set(choices) for row in decided):
        raise UsageError("rows with choices of their own cannot be calibrated", "give all the same: --choices")
    return calibrate(labelled_decisions(decided, choices), choices, made_with)


def measured(trust: Trust, rows: Sequence[Labelled]) -> str:
    """How many labelled rows a threshold decides, and how many of these are wrong."""
    assert trust.threshold
    least = round(trust.threshold.probability, PLACES)
    sure = [row for row in rows if row.probabilities and max(row.probabilities.values()) >= least]
    wrong = sum(row.answer != row.reference for row in sure)
    share = f" ({wrong / len(sure):.1%})" if sure else ""
    return f"{len(sure):,} of {len(rows):,} rows decided, {wrong:,} of them wrong{share}; {trust.promise}"


def read_labels(rows: BatchInput, asked: DecisionAsker, column: str) -> Texts:
    """The labels of all rows. Raises UsageError."""
    labels = []
    for row in rows:
        try:
            choices = asked.choices_for(row.input)
        except UsageError as problem:
            raise UsageError(f"row {row.id}: {problem.message}", problem.hint) from problem
        labels.append(read_label(row.input, column, choices, f"row {row.id}"))
    return tuple(labels)


def read_label(values: Any, column: str, choices: GivenChoices, name: str) -> str:
    """The choice that a row's label names, in any case. Raises UsageError for another label, and without one."""
    if not isinstance(values, dict) or column not in values:
        known = format_names(list(values)) if isinstance(values, dict) else "none"
        raise UsageError(f"{name} has no field {column!r}", f"the fields are: {known}")
    label = field_text(values[column])
    try:
        return choices.names[choices.find(label)]
    except KeyError:
        problem = f"{name}: the label {truncate(label, SHOWN)!r} is not a choice"
        raise UsageError(problem, f"the choices are: {format_names(choices.names)}") from None
