"""`cerebrum eval`: measure how well a model answers."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from cerebrum_cli.cli.options import json_option
from cerebrum_cli.cli.row_commands import RowOptions, Work, answer_missing, resumable, row_options, source_fingerprint
from cerebrum_cli.cli.signature import composed, positional, settings_options
from cerebrum_cli.core.declaration import Option, flag, option, options_of, switch
from cerebrum_cli.core.environment import without_home
from cerebrum_cli.core.errors import SOME_FAILED, BatchError, UsageError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_events import SHOWN_ERRORS
from cerebrum_cli.core.settings import REPLY_KEYS, Layer, SourcedLayer
from cerebrum_cli.core.text import format_count, format_duration, format_utc
from cerebrum_cli.eval.completions import presets, tasks
from cerebrum_cli.eval.questions import MATCHES, MAX_SAMPLES, Match, select

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.eval.evaluate import Evaluation
    from cerebrum_cli.eval.presets import Preset
    from cerebrum_cli.eval.sources import LoadedTask
    from cerebrum_cli.eval.stored_runs import Run
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.results.rows import Results
    from cerebrum_cli.terminal.streams import Streams

SETTINGS = settings_options(
    REPLY_KEYS,
    temperature="Sampling temperature [default: the model's, else 0, or 0.7 with several samples]",
    seed="Random seed [default: 0]",
)
# Options that deviate from a preset.
DEVIATING = ("limit", "tool", "template", "examples", "raw", "match", "schema", "grammar", "template_arg")
LIMITED = "decide --limit beforehand: raising it until a result looks significant finds differences by chance"


ALIKE = ("model", "task", "check", "set of functions")  # in the fingerprints of runs that take equally long


@row_options
class EvalOptions(RowOptions):
    preset: str | None = option("Use the evaluation settings of a model card", "Input", metavar="NAME", values=presets)
    limit: int | None = option(
        "Number of questions, a fixed random subset [default: all]", "Input", metavar="N", least=1
    )
    template: str | None = option("Build the prompt from a question's fields", "Input", metavar="TEXT")
    examples: Path | None = option(
        "Question file whose questions and answers precede each question", "Input", metavar="FILE"
    )
    raw: bool = switch("Complete prompts verbatim, without a format", "Input")
    samples: int | None = option(
        "Samples per question [default: 1, or the preset's]", "Sampling", metavar="K", least=1, most=MAX_SAMPLES
    )
    match: str | None = option(
        "How answers are compared [default: answer]", "Output", metavar="|".join(MATCHES), choices=MATCHES
    )
    run_code: bool = switch("Run the programs that the model writes, in a sandbox", "Output")
    check: str | None = option(
        "Ask for a program after each sample; its output is a vote, too",
        "Sampling",
        metavar="python",
        choices=("python",),
    )
    restart: bool = switch("Start over; replace the run when done", "Output")
    dry_run: bool = switch("Show one prompt and estimate the run time", "Output")
    json: bool = json_option()


@composed
def evaluate_model(
    app: App,
    source: Annotated[
        str,
        positional("TASK", "Task such as gsm8k, humaneval or ifeval, or a file like exam.jsonl", tasks),
    ],
    overrides: Annotated[Layer, SETTINGS],
    options: EvalOptions,
    output: Annotated[
        Path | None,
        Option("File for the run [default: named after task and model]", "Output", short="-o", metavar="RUN.jsonl"),
    ] = None,
) -> None:
    """A question file has one JSON object on each line, with `question`, `answer` and, for multiple choice, `choices`.

    Samples are saved within a second; run the same command again to resume. A larger --limit extends the run, and so
    does a larger --samples at the same temperature.

    Examples:
      cerebrum eval gsm8k -m cerebrum-7b --limit 200
      cerebrum eval exam.jsonl -m cerebrum-7b:Q8_0 --samples 8
    """
    from cerebrum_cli.eval.runs_command import print_run
    from cerebrum_cli.eval.stored_runs import RunStore
    from cerebrum_cli.eval.tasks import HARNESS_TASKS
    from cerebrum_cli.results.results import output_paths

    if output:
        if output == Path("-"):
            raise UsageError("a run cannot be written to standard output", "omit -o; use --json to print the report")
        output_paths(output, Path(source))
        if output.suffix.lower() in (".csv", ".tsv"):
            raise UsageError(f"{output}: a run is not a table, but JSON Lines", "name it .jsonl")
    if source in HARNESS_TASKS:
        run_in_harness(app, source, overrides, options, output)
        return
    prepared = prepare(app, source, overrides, options)
    path, why_new = (output, "") if output else RunStore.of(app).path_for(prepared.fingerprint)
    if why_new:
        app.streams.note(why_new)
    if options.dry_run:
        show_preview(app, prepared, path, options)
        return
    if output is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    run = take_samples(app, prepared, path, options)
    samples = run.samples()
    try:
        print_run(app, run, samples, options.json)
    except UsageError as error:  # no sample counts
        app.streams.error(error)
    if prepared.task.bad_rows or any(sample.is_skipped for sample in samples):
        raise typer.Exit(SOME_FAILED)


def run_in_harness(app: App, source: str, overrides: Layer, options: EvalOptions, output: Path | None) -> None:
    """Evaluate a task that lm-eval scores. Raises UsageError for options that do not apply to it."""
    from cerebrum_cli.eval.lm_eval_command import KEYS, LmEvalOptions, evaluate_harness_tasks
    from cerebrum_cli.eval.reproduction import given_options
    from cerebrum_cli.eval.tasks import HARNESS_TASKS

    kept = options_of(LmEvalOptions).keys() - {"preset"}
    others = [name for name in options_of(EvalOptions) if name not in kept]
    needless = [*given_options(options, *others), *(flag(key) for key in overrides if key not in KEYS)]
    if needless:
        raise UsageError(f"{needless[0]} does not apply to {source}, which lm-eval evaluates", "omit it")
    task, arguments = HARNESS_TASKS[source]
    shared = {name: getattr(options, name) for name in kept if hasattr(options, name)}
    evaluate_harness_tasks(app, [task], overrides, LmEvalOptions(**shared, **arguments, output=output))


class PreparedEvaluation(NamedTuple):
    """An evaluation, what generates its samples, and everything that they depend on, by readable names."""

    task: LoadedTask
    evaluation: Evaluation
    source: ModelSource
    fingerprint: JsonObject


def prepare(app: App, source: str, overrides: Layer, options: EvalOptions) -> PreparedEvaluation:
    """Read the questions, and resolve the model and its settings. Raises UsageError, ModelNotFound."""
    from cerebrum_cli.cli.constraints import read_grammar
    from cerebrum_cli.eval.evaluate import Evaluation
    from cerebrum_cli.eval.presets import find_preset
    from cerebrum_cli.eval.reproduction import CONDITION_KEYS, PRESET

    _ = options.window  # an invalid one is refused before questions are downloaded
    tools = options.find_tools()
    preset = find_preset(options.preset) if options.preset else None
    task = read_task(app, source, options, preset)
    if preset:
        app.ignore_settings(CONDITION_KEYS)
    samples = options.samples or task.condition.samples
    conditions = SourcedLayer({"temperature": task.condition.temperature, "stop": task.stop or None}, origin=PRESET)
    overrides = SourcedLayer(conditions, overrides)
    model_source = replace(options.find_source(app, overrides), raw=options.raw)
    if samples > 1:
        model_source = model_source.for_samples("--samples")
    settings = model_source.settings
    settings = replace(settings, seed=settings.seed or 0)  # compared models draw the same seeds
    model_source = replace(model_source, settings=settings)
    if preset:
        task = with_remark(task, model_source, preset, options)
    if options.check:
        require_check(task, model_source)
    evaluation = Evaluation(
        select(task.questions, options.limit),
        samples,
        settings,
        model_source.model.label,
        task.match,
        read_grammar(options, model_source),
        task.examples,
        checks=options.check is not None,
        is_raw=options.raw,
        tools=tools,
    )
    fingerprint = fingerprint_of(task, evaluation, model_source, options)
    return PreparedEvaluation(task, evaluation, model_source, fingerprint)


def with_remark(task: LoadedTask, source: ModelSource, preset: Preset, options: EvalOptions) -> LoadedTask:
    """The task with a remark on what differs from the preset, if anything does."""
    from cerebrum_cli.eval.reproduction import given_options, no_reproduction

    condition = task.condition
    deviations = []
    if options.samples not in (None, condition.samples):
        deviations.append(f"--samples {options.samples}, not {condition.samples}")
    deviations += given_options(options, *DEVIATING)
    remark = no_reproduction(source, preset, {"temperature": condition.temperature}, deviations)
    if remark is None:
        return task
    return replace(task, remarks=(*task.remarks, remark))


def fingerprint_of(task: LoadedTask, evaluation: Evaluation, source: ModelSource, options: EvalOptions) -> JsonDict:
    from cerebrum_cli.eval.stored_runs import CHECK, provenance

    fingerprint: JsonDict = {
        **task.fingerprint,
        **provenance(source),
        **source_fingerprint(source),
        **source.fingerprint(evaluation.grammar),
        **options.tool_record(evaluation.tools),
    }
    if options.check:
        fingerprint[CHECK] = options.check
    return fingerprint


def require_check(task: LoadedTask, source: ModelSource) -> None:
    """Raise UsageError where programs cannot vote: on code or choices, behind a server, or without a sandbox."""
    from cerebrum_cli.replies.checking import ONLY_HERE, create_check

    if task.match not in ("answer", "math") or any(question.choices for question in task.questions):
        raise UsageError("--check applies to answers that a program can compute", "omit --check, --match and choices")
    if source.raw:
        raise UsageError.conflict("--check", "--raw")
    if source.servers is not None:
        raise UsageError(*ONLY_HERE)
    create_check()


def read_task(app: App, source: str, options: EvalOptions, preset: Preset | None) -> LoadedTask:
    from cerebrum_cli.eval.sources import read_source
    from cerebrum_cli.terminal.progress import FileProgress

    with FileProgress(app.streams) as progress:
        task = read_source(
            source,
            progress,
            preset=preset,
            template=options.template,
            examples=options.examples,
            match=cast(Match | None, options.match),
            run_code=options.run_code,
            offline=options.offline,
        )
    for bad in task.bad_rows[:SHOWN_ERRORS]:
        app.streams.note(f"line {bad.line} of {source} skipped: {bad.reason}")
    return task


def take_samples(app: App, prepared: PreparedEvaluation, path: Path, options: EvalOptions) -> Run:
    """Take the samples that are missing, and complete the run file. Raises Interrupted with how to resume.

    Its notes are for the report.
    """
    from cerebrum_cli.eval.stored_runs import require_run
    from cerebrum_cli.results.results import open_results

    task, evaluation, source, fingerprint = prepared
    rows = evaluation.rows
    notes = {
        "reference": without_home(source.model.reference),
        **{key: list(map(without_home, paths)) for key, paths in source.model.adapter_params.items()},
        "quantization": source.model.quantization,
        "all questions": len(task.questions),
        "bad_rows": len(task.bad_rows),
        "remarks": [*task.remarks, *([LIMITED] if len(evaluation.questions) < len(task.questions) else [])],
    }
    run = open_results(path, fingerprint, rows, options.restart, extent=evaluation.extent, notes=notes)
    with resumable(run, "samples", options.restart):
        if len(run.finished) < rows.size:
            run.write_notes({**run.notes, **notes})
            generate(app, prepared, run, options)
    return require_run(path)


def generate(app: App, prepared: PreparedEvaluation, run: Results, options: EvalOptions) -> None:
    """Take the missing samples, and note how long they took, for the estimates of later runs."""
    from cerebrum_cli.eval.evaluate import evaluate

    evaluation = prepared.evaluation
    before = len(run.finished)
    start = time.monotonic()
    answer_block = partial(evaluate, evaluation)
    here = partial(answer_block, missing=run.missing, results=run)
    work = Work(range(evaluation.rows.size), 1, here, answer_block)
    try:
        answer_missing(app, prepared.source, options, run, work)
    finally:
        if samples := len(run.finished) - before:
            seconds = run.notes.get("seconds", 0.0) + time.monotonic() - start
            timed = run.notes.get("timed_samples", 0) + samples
            with suppress(BatchError):  # of a full disk: what went wrong before it matters more
                timing = {"seconds": round(seconds, 3), "timed_samples": timed, "date": format_utc(time.time())}
                run.write_notes({**run.notes, **timing})


def show_preview(app: App, prepared: PreparedEvaluation, path: Path, options: EvalOptions) -> None:
    """Print the exact prompt of the first question on standard output, and a summary of the run on standard error."""
    from cerebrum_cli.engine.requests import ContextOptions
    from cerebrum_cli.eval.stored_runs import samples_to_keep
    from cerebrum_cli.replies.interface import open_source

    evaluation = prepared.evaluation
    first = evaluation.questions[0]
    with open_source(replace(prepared.source, context=ContextOptions(), vocabulary_only=True)) as loaded:
        asked = evaluation.ask(first, evaluation.settings)
        prompt, token_ids = loaded.preview(asked.conversation, evaluation.settings)
    samples = missing = evaluation.rows.size
    if not options.restart:
        missing -= len(samples_to_keep(path, prepared.fingerprint, evaluation.extent))
    pace = seconds_per_sample(app, prepared)
    if options.json:
        preview = {
            "prompt": prompt,
            "prompt_tokens": len(token_ids),
            "reference": first.reference,
            "questions": len(evaluation.questions),
            "bad_rows": len(prepared.task.bad_rows),
            "total_samples": samples,
            "missing_samples": missing,
            "seconds": pace and round(pace * samples),
            "missing_seconds": pace and round(pace * missing),
        }
        app.streams.answer_object(preview)
        return
    app.streams.answer_prompt(prompt)
    if not app.streams.is_quiet:
        describe_run(app.streams, prepared)
        duration = "time unknown: no earlier run of this model and task"
        if pace is not None:
            duration = f"about {format_duration(pace * missing)}"
        app.streams.info(f"{missing} of {format_count(samples, 'sample')} to generate, {duration}")


def seconds_per_sample(app: App, prepared: PreparedEvaluation) -> float | None:
    """Estimated seconds of a sample, by the latest run like this one; None if there is none."""
    from cerebrum_cli.eval.stored_runs import RunStore

    for run in reversed([*RunStore.of(app)]):
        notes = run.notes
        is_alike = all(run.fingerprint.get(key) == prepared.fingerprint.get(key) for key in ALIKE)
        if is_alike and notes.get("timed_samples"):
            seconds: float = notes["seconds"] / notes["timed_samples"]
            return seconds
    return None


def describe_run(streams: Streams, prepared: PreparedEvaluation) -> None:
    from cerebrum_cli.terminal.tables import sampling_text

    task, evaluation = prepared.task, prepared.evaluation
    questions, samples = format_count(len(task.questions), "question"), format_count(evaluation.samples, "sample")
    streams.info(f"expected answer: {evaluation.questions[0].reference}")
    streams.info(f"{len(evaluation.questions)} of {questions}, {samples} each")
    streams.info(sampling_text(evaluation.settings.samplers, evaluation.settings.origins))
    for line in task.remarks:
        streams.write_line("- ", line)
