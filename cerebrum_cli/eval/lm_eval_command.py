"""`cerebrum lm-eval`: run tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cerebrum_cli.cli.command import argument, settings_options
from cerebrum_cli.cli.options import json_option
from cerebrum_cli.cli.row_commands import ConcurrencyOptions
from cerebrum_cli.core.declaration import EFFORTS, INTEGER, PATH, SWITCH, option, option_group, switch
from cerebrum_cli.core.environment import set_environment_default
from cerebrum_cli.core.errors import CerebrumError, FormatError, UsageError
from cerebrum_cli.core.events import Event, LoadEvent, NoticeEvent, StageEvent
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import LOAD_KEYS, Layer
from cerebrum_cli.core.text import pip_install, short_digest
from cerebrum_cli.eval.completions import presets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.eval.lm_eval.model import Use
    from cerebrum_cli.eval.presets import Preset
    from cerebrum_cli.replies.interface import Model
    from cerebrum_cli.replies.source import ModelSource

BOS = "add_bos_token"
KEYS = (*LOAD_KEYS, "think", "seed")  # settings that apply
# Options of servers.
NEEDLESS = """
endpoint served_model_name
"""
ANSWER_RULES = 1  # by which reasoning is removed from replies: results in the cache depend on them


@option_group
class LmEvalOptions(ConcurrencyOptions):
    """Options of `cerebrum lm-eval`, which scores given texts: no server can."""

    without: ClassVar = NEEDLESS.split()
    preset: str | None = option(
        "Compare with a model card, under its conditions", "Output", metavar="NAME", values=presets
    )
    limit: int | None = option(
        "The first N documents of each task [default: all]", "Input", INTEGER, metavar="N", least=1
    )
    num_fewshot: int | None = option(
        "Few-shot examples per prompt [default: the task's]", "Input", INTEGER, metavar="N", least=0
    )
    include_path: Path | None = option("Directory with your own tasks", "Input", PATH, metavar="DIR")
    gen_kwargs: str | None = option("Generation settings for the tasks", "Sampling", metavar="KEY=VALUE,...")
    add_bos_token: bool | None = option(
        "Put BOS before texts [default: the model's, or the preset's]", kind=SWITCH, local=True
    )
    apply_chat_template: bool = switch("Apply the model's chat template", "Input")
    output: Path | None = option("File for all results", "Output", PATH, short="-o", metavar="RESULTS.json")
    log_samples: bool = switch("Save every sample with the results", "Output")
    restart: bool = switch("Start over; replace RESULTS.json", "Output")
    json: bool = json_option()


@option_group
class LmEvalCommand(LmEvalOptions):
    """Prints lm-eval's own table. Install lm-eval first: pip install "cerebrum-cli[lm-eval]".

    Generation settings come from the task; --gen-kwargs overrides them. If the run is interrupted, run it again to
    resume.

    Examples:
      cerebrum lm-eval arc_easy piqa -m cerebrum-7b --limit 200
    """

    settings = settings_options(KEYS, seed="Random seed [default: 0]")
    tasks: list[str] = argument("TASK...", "Task names or wildcards; `lm_eval ls tasks` lists tasks", is_list=True)

    def run(self, app: App) -> None:
        evaluate_harness_tasks(app, self.tasks, self.overrides, self)


def evaluate_harness_tasks(app: App, tasks: Sequence[str], overrides: Layer, options: LmEvalOptions) -> None:
    """Evaluate tasks, and print lm-eval's own table."""
    from cerebrum_cli.core.files import atomic_write, lock_file, remove, require_space
    from cerebrum_cli.eval.presets import find_preset
    from cerebrum_cli.eval.reproduction import CONDITION_KEYS
    from cerebrum_cli.terminal.progress import interruptible

    require_usable(overrides, options)
    preset = find_preset(options.preset) if options.preset else None
    if preset:
        app.ignore_settings(CONDITION_KEYS)
        if options.add_bos_token is None:
            options = replace(options, add_bos_token=preset.assumed.get(BOS))
    source = options.find_source(app, overrides)
    if not options.apply_chat_template:
        try:
            _ = source.chosen_format  # if it is known, so is the markup of its reasoning
        except FormatError:
            source = replace(source, raw=True)
    limit_network(app, options.offline)
    cache = cache_path(app, source, options)
    cache.parent.mkdir(parents=True, exist_ok=True)
    # If it cannot write to its cache, lm-eval hangs.
    require_space(cache.parent, 0, CerebrumError, "set XDG_CACHE_HOME to a directory on another disk")
    busy = CerebrumError(
        "another process runs lm-eval on this model with these settings", "wait for it: they share a cache"
    )
    lock = cache.with_name(f".{cache.name}.lock")
    with lock_file(lock, busy, is_required=False):
        if options.restart:
            remove_cache(cache)
        with interruptible("run it again to resume"):
            results = run_tasks(app, source, tasks, cache, preset, options)
        if options.output:
            atomic_write(options.output, json.dumps(results, ensure_ascii=False).encode())
        print_results(app, source, results, preset, options)
        remove_cache(cache)
        remove(lock)


def require_usable(overrides: Layer, options: LmEvalOptions) -> None:
    from cerebrum_cli.results.results import output_paths

    output = options.output
    if find_spec("lm_eval") is None:
        raise UsageError("lm-eval is not installed", pip_install('"cerebrum-cli[lm-eval]"'))
    if not options.apply_chat_template:
        needless = "" if overrides.get("system") is None else "--system"
        if overrides.get("think") in ("on", *EFFORTS):
            needless = f"--think {overrides['think']}"
        if needless:
            problem = f"{needless} has no effect without --apply-chat-template"
            raise UsageError(problem, "add it, or omit the option; --think N limits thinking")
    if options.log_samples and not output:
        raise UsageError("--log-samples requires -o", "add -o RESULTS.json")
    if output == Path("-"):
        raise UsageError("results cannot be written to standard output", "omit -o; use --json to print the results")
    if output:
        output_paths(output)
        if output.exists() and not options.restart:
            raise UsageError(f"{output} already exists", "choose another -o, or use --restart to replace it")


def limit_network(app: App, is_offline: bool) -> None:
    """Work offline if requested, or if the Hub is unreachable."""
    from cerebrum_cli.library.online import offline_if_unreachable

    if is_offline:
        set_environment_default("HF_HUB_OFFLINE", "1")
        set_environment_default("HF_DATASETS_OFFLINE", "1")
    elif problem := offline_if_unreachable():  # each request would be retried for most of a minute
        app.streams.note(NoticeEvent(problem, "only datasets that are already downloaded can be used"))


def run_tasks(
    app: App, source: ModelSource, tasks: Sequence[str], cache: Path, preset: Preset | None, options: LmEvalOptions
) -> JsonDict:
    from cerebrum_cli.terminal.progress import StageProgress

    open_for = partial(open_for_lm_eval, source, scores_raw=not options.apply_chat_template)
    progress = StageProgress(app.streams, is_shown=not (options.quiet or options.verbose))

    def emit(event: Event) -> None:
        if isinstance(event, LoadEvent):
            event = StageEvent(f"loading {source.model.name}", round(100 * event.fraction), 100)
        progress.emit(event)

    with closing(progress):
        emit(StageEvent("importing lm-eval", 0, 1))
        from cerebrum_cli.eval.lm_eval.model import CerebrumLM
        from cerebrum_cli.eval.lm_eval.tasks import comparisons, evaluate_tasks

        with closing(CerebrumLM(open_for, emit, source.settings.seed or 0, options.add_bos_token)) as harness_model:
            results = evaluate_tasks(
                harness_model,
                tasks,
                options.include_path,
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                gen_kwargs=options.gen_kwargs,
                log_samples=options.log_samples,
                apply_chat_template=options.apply_chat_template,
                system_instruction=source.settings.system if options.apply_chat_template else None,
                use_cache=str(cache),
            )
        return {**results, "published": comparisons(results, preset)} if preset else results


def open_for_lm_eval(source: ModelSource, use: Use, scores_raw: bool = False) -> Model:
    """Start to load the model for lm-eval's requests; a score does not depend on what is scored beside it.

    With `scores_raw`, texts to score have no prompt format.
    """
    from cerebrum_cli.engine.requests import ContextOptions
    from cerebrum_cli.replies.interface import open_source

    if use == "generation":
        return open_source(source.for_rows())
    settings = replace(source.settings, cache_type=None, flash_attn=None)
    exact = ContextOptions(
        slots=16, kv_unified=True, flash_attention=False, cache_type_k="f32", cache_type_v="f32", swa_full=True
    )
    return open_source(replace(source, settings=settings, context=exact, raw=source.raw or scores_raw))


def print_results(
    app: App, source: ModelSource, results: JsonObject, preset: Preset | None, options: LmEvalOptions
) -> None:
    from cerebrum_cli.eval.lm_eval.tasks import remarks, results_table
    from cerebrum_cli.eval.report_tables import print_published
    from cerebrum_cli.eval.reproduction import given_options, no_reproduction

    streams = app.streams
    if options.json:
        streams.answer({key: value for key, value in results.items() if key != "samples"})
        return
    streams.answer(results_table(results))
    if rows := results.get("published"):
        streams.answer("\n")
        print_published(streams, rows)
    if preset is None or streams.is_quiet:
        return
    # Options that change the results, and differ from what the card states, or presumably had.
    names = [*(name for name in preset.assumed if name != BOS), "gen_kwargs", "template_arg"]
    if any(size["effective"] < size["original"] for size in results["n-samples"].values()):
        names.insert(0, "limit")
    deviations = list(given_options(options, *names))
    if preset.assumed.get(BOS) not in (None, options.add_bos_token):
        deviations.insert(0, f"--set {BOS}={'on' if options.add_bos_token else 'off'}")
    for line in filter(None, (*remarks(results, preset), no_reproduction(source, preset, {}, deviations))):
        streams.note(f"- {line}")


def cache_path(app: App, source: ModelSource, options: LmEvalOptions) -> Path:
    """Where lm-eval saves results while they are computed, since its own keys are only texts.

    It depends on the model, the settings, and the build of llama.cpp.
    """
    from cerebrum_cli.core.llama_cpp import build_fingerprint

    settings = source.settings
    record = (
        ANSWER_RULES,
        build_fingerprint(),
        app.library.identity(source.model, is_hashed=True),
        source.model.adapter_identity,
        settings.ctx,
        settings.seed,
        options.add_bos_token,
        settings.format,
        options.apply_chat_template,
        settings.think,
        dict(source.template_variables),
        settings.cache_type,
    )
    digest = short_digest(json.dumps(record, sort_keys=True).encode())
    return app.cache_directory / "lm-eval" / digest


def remove_cache(cache: Path) -> None:
    for path in cache.parent.glob(f"{cache.name}*"):  # lm-eval adds to the name
        path.unlink(missing_ok=True)
