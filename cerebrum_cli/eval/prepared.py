"""What is evaluated, before any question is asked: the questions, the model, its settings, and what all depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cerebrum_cli.core.ask import Votes
from cerebrum_cli.core.environment import without_home
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import SourcedLayer
from cerebrum_cli.eval.answered import CHOICES
from cerebrum_cli.eval.presets import CONDITION_KEYS, PRESET, Preset, find_preset
from cerebrum_cli.eval.reading import select
from cerebrum_cli.eval.runs import CHECK, MATCH, SAMPLES, provenance
from cerebrum_cli.eval.sources import LoadedTask, find_task, load_task
from cerebrum_cli.eval.tasks import Task
from cerebrum_cli.rows.answering import BatchOptions
from cerebrum_cli.terminal.progress import FileProgress

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.eval.eval_options import EvalOptions
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.rows.read import RowList

LIMITED = "decide --limit beforehand: raising it until a result looks significant finds differences by chance"


@frozen
class PreparedEvaluation:
    """Questions, how and of which model they are asked, and everything that the answers depend on, by readable names.

    The `notes` are for the report.
    """

    task: Task
    questions: RowList
    asker: BatchOptions
    source: ModelSource
    fingerprint: JsonObject
    notes: JsonObject


def prepare(app: App, name: str, options: EvalOptions) -> PreparedEvaluation:
    """Find the model and its settings, then read the questions of a task. Raises CerebrumError."""
    _ = options.window  # an invalid one is refused before anything is downloaded
    tools = options.find_tools(app)
    task = find_task(name, options)
    preset = find_preset(options.preset, name) if options.preset else None
    samples = options.samples or (preset.samples if preset else 1)
    if tools and samples > 1:
        raise UsageError.conflict(options.tool_flag, "--samples")
    source = find_source(app, options, preset, samples)
    if options.check:
        require_check(task, source)
    with FileProgress(app.streams) as progress:
        loaded = load_task(task, progress, options)
    if options.check and any(CHOICES in row.expected for _, row in loaded.questions.rows):
        raise UsageError("--check applies to answers that a program can compute", "omit --check, or the choices")
    votes = None
    if samples > 1 or options.check:
        votes = Votes(samples, samples, checks=options.check is not None, takes_all=True)
    asker = BatchOptions(source.settings, options.read_grammar(source), votes, tools=tools)
    fingerprint: JsonDict = {
        **loaded.fingerprint,
        **provenance(source),
        **source.fingerprint(asker.grammar),
        **options.tool_record(tools),
        SAMPLES: samples,
        CHECK: options.check,
    }
    questions = select(loaded.questions, options.limit)
    notes = notes_of(task, loaded, questions, source, preset)
    return PreparedEvaluation(task, questions, asker, source, fingerprint, notes)


def find_source(app: App, options: EvalOptions, preset: Preset | None, samples: int) -> ModelSource:
    """The model, with the settings of a preset if there is one. Raises UsageError, ModelNotFound."""
    conditions = SourcedLayer()
    if preset:
        app.ignore_settings(CONDITION_KEYS)
        conditions.put("temperature", preset.temperature, PRESET)
    source = options.find_source(app, SourcedLayer(conditions, options.overrides))
    if samples > 1:
        source = source.for_samples("--samples")
    settings = replace(source.settings, seed=source.settings.seed or 0)  # compared models draw the same seeds
    return replace(source, settings=settings)


def require_check(task: Task, source: ModelSource) -> None:
    """Raise UsageError where programs cannot vote: on code, behind a server, or without Monty."""
    if task.match not in ("answer", "math"):
        raise UsageError("--check applies to answers that a program can compute", "omit --check and --match")
    source.require_check()


def notes_of(
    task: Task, loaded: LoadedTask, questions: RowList, source: ModelSource, preset: Preset | None
) -> JsonDict:
    """What the record of a run remembers for its report."""
    model, remarks = source.model, [*loaded.remarks]
    if len(questions.rows) < len(loaded.questions.rows):
        remarks.append(LIMITED)
    if preset:
        remarks.append(f"preset {preset.name}: {preset.published}")
    return {
        MATCH: task.match,
        "reference": without_home(model.reference),
        **{key: list(map(without_home, paths)) for key, paths in model.adapter_params.items()},
        "quantization": model.quantization,
        "question file": loaded.digest,
        "all questions": len(loaded.questions.rows),
        "remarks": remarks,
    }
