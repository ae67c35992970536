"""What is evaluated, before any sample is taken: the questions, the model, its settings, and what all depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cerebrum_cli.core.environment import without_home
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_events import SHOWN_ERRORS
from cerebrum_cli.core.settings import Layer, SourcedLayer
from cerebrum_cli.eval.evaluate import Evaluation
from cerebrum_cli.eval.presets import CONDITION_KEYS, PRESET, find_preset
from cerebrum_cli.eval.questions import select
from cerebrum_cli.eval.sources import LoadedTask, as_asked, find_task, read_source
from cerebrum_cli.eval.stored_runs import CHECK, provenance
from cerebrum_cli.replies.source import ModelSource
from cerebrum_cli.terminal.progress import FileProgress

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.eval.eval_options import EvalOptions

LIMITED = "decide --limit beforehand: raising it until a result looks significant finds differences by chance"


@frozen
class PreparedEvaluation:
    """An evaluation, what generates its samples, and everything that they depend on, by readable names."""

    task: LoadedTask
    evaluation: Evaluation
    source: ModelSource
    fingerprint: JsonObject

    @property
    def notes(self) -> JsonDict:
        """What the record of a run remembers for its report."""
        task, model = self.task, self.source.model
        is_limited = len(self.evaluation.questions) < len(task.questions)
        return {
            "reference": without_home(model.reference),
            **{key: list(map(without_home, paths)) for key, paths in model.adapter_params.items()},
            "quantization": model.quantization,
            "all questions": len(task.questions),
            "bad_rows": len(task.bad_rows),
            "remarks": [*task.remarks, LIMITED] if is_limited else [*task.remarks],
        }


def prepare(app: App, source: str, overrides: Layer, options: EvalOptions) -> PreparedEvaluation:
    """Find the model and its settings, and then the questions, which may be downloaded.

    Raises UsageError, ModelNotFound, PullError.
    """
    _ = options.window  # an invalid one is refused before questions are downloaded
    tools = options.find_tools(app)
    preset = find_preset(options.preset, source) if options.preset else None
    conditions = SourcedLayer({"stop": as_asked(find_task(source), preset, options).stop or None}, origin=PRESET)
    samples = options.samples or 1
    if preset:
        app.ignore_settings(CONDITION_KEYS)
        conditions.put("temperature", preset.temperature, PRESET)
        samples = options.samples or preset.samples
    overrides = SourcedLayer(conditions, overrides)
    model_source = replace(options.find_source(app, overrides), raw=options.raw)
    if samples > 1:
        model_source = model_source.for_samples("--samples")
    settings = model_source.settings
    settings = replace(settings, seed=settings.seed or 0)  # compared models draw the same seeds
    model_source = replace(model_source, settings=settings)
    with FileProgress(app.streams) as progress:
        task = read_source(source, progress, options, preset)
    for bad in task.bad_rows[:SHOWN_ERRORS]:
        app.streams.note(NoticeEvent(f"line {bad.line} of {source} skipped: {bad.reason}"))
    if options.check:
        require_check(task, model_source)
    evaluation = Evaluation(
        select(task.questions, options.limit),
        samples,
        settings,
        model_source.model.label,
        task.match,
        options.read_grammar(model_source),
        task.examples,
        checks=options.check is not None,
        is_raw=options.raw,
        tools=tools,
    )
    fingerprint = fingerprint_of(evaluation, task, model_source, options)
    return PreparedEvaluation(task, evaluation, model_source, fingerprint)


def fingerprint_of(evaluation: Evaluation, task: LoadedTask, source: ModelSource, options: EvalOptions) -> JsonDict:
    """Everything that the answers of an evaluation depend on, by readable names."""
    fingerprint: JsonDict = {
        **task.fingerprint,
        **provenance(source),
        **source.fingerprint(evaluation.grammar),
        **options.tool_record(evaluation.tools),
    }
    if options.check:
        fingerprint[CHECK] = options.check
    return fingerprint


def require_check(task: LoadedTask, source: ModelSource) -> None:
    """Raise UsageError where programs cannot vote: on code or choices, behind a server, or without Monty."""
    if task.match not in ("answer", "math") or any(question.choices for question in task.questions):
        raise UsageError("--check applies to answers that a program can compute", "omit --check, --match and choices")
    if source.raw:
        raise UsageError.conflict("--check", "--raw")
    source.require_check()
