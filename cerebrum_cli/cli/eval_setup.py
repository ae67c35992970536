"""Prepare an evaluation: read its questions, resolve the model, and fold the settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cerebrum_cli.cli.generation import find_source, read_grammar, require_effective, require_valid, source_fingerprint
from cerebrum_cli.cli.models import file_progress
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import SHOWN_ERRORS, NoticeEvent
from cerebrum_cli.eval.evaluate import Evaluation
from cerebrum_cli.eval.marking import MATCHES
from cerebrum_cli.eval.questions import MAX_SAMPLES, select
from cerebrum_cli.eval.runs import QUESTIONS, SAMPLES
from cerebrum_cli.eval.sources import LoadedTask, ReadOptions, read_source
from cerebrum_cli.eval.tasks import find_preset
from cerebrum_cli.inference.loading import generation_fingerprint

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.options import EvalOptions
    from cerebrum_cli.core.settings import Layer, Settings
    from cerebrum_cli.eval.tasks import Condition
    from cerebrum_cli.inference.loading import ReplySource


@dataclass(frozen=True, slots=True)
class PreparedEvaluation:
    """An evaluation, and what generates its samples."""

    task: LoadedTask
    evaluation: Evaluation
    source: ReplySource

    @property
    def notes(self) -> dict[str, Any]:
        """What the report of the run states, and the model that `runs compare --kl` loads."""
        task, model = self.task, self.source.model
        counts = {"bad_rows": len(task.bad_rows), "remarks": list(task.remarks)}
        return {"reference": model.reference, **model.adapter_params, **counts}

    @property
    def extent(self) -> dict[str, int]:
        """What may grow from one run to the next."""
        return {QUESTIONS: len(self.evaluation.questions), SAMPLES: self.evaluation.samples}

    def fingerprint(self, app: App) -> dict[str, Any]:
        """Everything the samples depend on, by readable names."""
        evaluation, source = self.evaluation, self.source
        return {
            **self.task.fingerprint,
            **source_fingerprint(source),
            **generation_fingerprint(evaluation.settings, evaluation.grammar, source.model, app.library),
        }


def prepare(
    app: App, source: str, overrides: Layer, options: EvalOptions, on_command_line: frozenset[str]
) -> PreparedEvaluation:
    """Read the questions, and resolve the model and its settings. Raises UsageError, ModelNotFound."""
    require_valid(overrides, options)  # before questions are downloaded
    require_count("--samples", options.samples, MAX_SAMPLES)
    require_count("--limit", options.limit)
    task = read_task(app, source, options)
    samples = options.samples or task.samples
    if samples > 1 and overrides.get("temperature") is None and task.settings.get("temperature") == 0:
        problem = f"--samples needs a temperature above 0, but preset {options.preset} sets 0"
        raise UsageError(problem, "add --temperature 0.7, or omit --samples")
    overrides = {**overrides, **{key: value for key, value in task.settings.items() if overrides.get(key) is None}}
    reply_source = find_source(app, overrides, options, "--samples" if samples > 1 else None)
    require_effective(reply_source.settings, on_command_line, options)
    settings = reply_source.settings
    settings = replace(settings, seed=settings.seed or 0)  # compared models draw the same seeds
    task = replace(task, remarks=(*task.remarks, *deviations(task.condition, settings, samples)))
    grammar, label = read_grammar(app, options), reply_source.model.label
    questions = select(task.questions, options.limit)
    evaluation = Evaluation(questions, samples, settings, label, task.marker, grammar)
    return PreparedEvaluation(task, evaluation, replace(reply_source, settings=settings))


def read_task(app: App, source: str, options: EvalOptions) -> LoadedTask:
    """Read the questions, with a progress bar if they are downloaded, and name the rows that do not count."""
    match = next((each for each in MATCHES if each == options.match), None)
    if options.match and match is None:
        raise UsageError(f"--match is {options.match!r}", f"it must be {', '.join(MATCHES)}")
    read_options = ReadOptions(options.template, match, options.run_code)
    preset = find_preset(options.preset) if options.preset else None
    with file_progress(app, options) as progress:
        task = read_source(source, read_options, preset, progress, options.offline)
    if not options.quiet:
        for bad in task.bad_rows[:SHOWN_ERRORS]:
            app.streams.notice(NoticeEvent(f"line {bad.line} of {source} skipped: {bad.reason}", ""))
        if (more := len(task.bad_rows) - SHOWN_ERRORS) > 0:
            app.streams.notice(NoticeEvent(f"{more} more {'line' if more == 1 else 'lines'} skipped", ""))
    return task


def deviations(condition: Condition | None, settings: Settings, samples: int) -> Iterator[str]:
    """Remarks on what the user set otherwise than a preset."""
    if condition is None:
        return
    if condition.temperature is not None and settings.temperature != condition.temperature:
        yield f"differs from the preset: temperature {settings.temperature:g} instead of {condition.temperature:g}"
    if samples != condition.samples:
        yield f"differs from the preset: samples {samples} instead of {condition.samples}"


def require_count(option: str, value: int | None, most: int | None = None) -> None:
    """Raise UsageError for a number below 1, or above the most that is allowed."""
    if value is not None and (value < 1 or (most and value > most)):
        raise UsageError(f"{option} is {value}", f"it must be from 1 to {most}" if most else "it must be 1 or more")
