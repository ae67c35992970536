"""Run tasks of lm-eval: the run of `cerebrum lm-eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from platform import machine
from typing import TYPE_CHECKING, Any

from cerebrum_cli.batch.files import output_paths
from cerebrum_cli.cli.generation import AUTO_PARALLEL, parse_parallel
from cerebrum_cli.cli.models import find_model, find_profile
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import LoadEvent, NoticeEvent, StageEvent
from cerebrum_cli.core.files import atomic_write
from cerebrum_cli.core.packages import pip_install
from cerebrum_cli.core.settings import set_environment_default
from cerebrum_cli.engine.load_options import plan_repacking
from cerebrum_cli.eval.tasks import Preset, find_preset
from cerebrum_cli.inference.load_options import Parallel, require_attention
from cerebrum_cli.inference.loading import LoadedModel, open_model
from cerebrum_cli.inference.profiles import Profile, tuning_of
from cerebrum_cli.inference.question import template_options
from cerebrum_cli.models.library import with_adapters
from cerebrum_cli.terminal.bars import StageProgress
from cerebrum_cli.terminal.interrupts import interruptible

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import Runtime
    from cerebrum_cli.cli.options import LmEvalOptions
    from cerebrum_cli.core.events import Event
    from cerebrum_cli.core.settings import Layer, Settings
    from cerebrum_cli.engine.load_options import Tuning
    from cerebrum_cli.eval.lm_harness import Use
    from cerebrum_cli.inference.loading import BackendFactory
    from cerebrum_cli.models.model import Model

SCORING = Parallel(16, kv_unified=True)  # in one cache, common prefixes are stored once


@dataclass(frozen=True, slots=True)
class HarnessModel:
    """A model, and how lm-eval's requests are run on it: `raw` without a prompt format, `slots` texts at a time."""

    model: Model
    profile: Profile | None
    settings: Settings
    raw: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    slots: int = AUTO_PARALLEL
    pad_steps: bool = False

    def open(self, factory: BackendFactory, use: Use) -> LoadedModel:
        """Start to load the model."""
        tuning, is_scoring, settings = tuning_of(self.profile, "batch"), use == "scoring", self.settings
        if is_scoring:
            settings = replace(settings, cache_type_k=None, cache_type_v=None, flash_attn=None)
        return open_model(
            factory,
            self.model,
            settings,
            raw=self.raw,
            template_options=self.arguments,
            parallel=SCORING if is_scoring else Parallel(self.slots, False, True, self.pad_steps),
            tuning=scoring_tuning(tuning, self.model.quantization) if is_scoring else tuning,
        )


def scoring_tuning(tuning: Tuning, quantization: str | None) -> Tuning:
    """Exact attention, so that a score does not depend on what is scored beside it; weights as for a batch."""
    repack = plan_repacking(quantization, False, machine()) if tuning.repack is None else tuning.repack
    return replace(tuning, flash_attention=False, cache_type="f32", repack=repack)


def run_lm_eval(runtime: Runtime, tasks: Sequence[str], given: Layer, options: LmEvalOptions) -> None:
    """Run tasks and print lm-eval's table. Raises Interrupted with how to resume."""
    require_usable(given, options)
    preset = find_preset(options.preset) if options.preset else None
    model = find_harness_model(runtime, given, options)
    if options.offline:
        set_environment_default("HF_HUB_OFFLINE", "1")
        set_environment_default("HF_DATASETS_OFFLINE", "1")
    cache = cache_path(runtime, model)
    if options.restart:
        remove_cache(cache)
    with interruptible("run it again to resume"):
        results = evaluate(runtime, model, tasks, cache, options)
    if options.output:
        atomic_write(options.output, json.dumps(results, ensure_ascii=False).encode())
    print_results(runtime, results, preset, options)
    remove_cache(cache)


def require_usable(given: Layer, options: LmEvalOptions) -> None:
    """Raise UsageError for options that are invalid or have no effect, and if lm-eval is not installed."""
    output, include_path = options.output, options.include_path
    if find_spec("lm_eval") is None:
        raise UsageError("lm-eval is not installed", pip_install('"cerebrum-cli[lm-eval]"'))
    if given.get("system") is not None and not options.apply_chat_template:
        raise UsageError("--system has no effect without --apply-chat-template", "add it, or omit --system")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit is {options.limit}", "it must be 1 or more")
    if options.num_fewshot is not None and options.num_fewshot < 0:
        raise UsageError(f"--num-fewshot is {options.num_fewshot}", "it must be 0 or more")
    if include_path and not include_path.is_dir():
        raise UsageError(f"--include-path {include_path} is not a directory", "check the path")
    if options.log_samples and not output:
        raise UsageError("--log-samples requires -o", "add -o RESULTS.json")
    if output == Path("-"):
        raise UsageError("-o is `-`, but the results are a file", "omit -o; --json prints the results")
    if output:
        output_paths(output)
        if output.exists() and not options.restart:
            raise UsageError(f"{output} already exists", "choose another -o, or use --restart to replace it")


def find_harness_model(runtime: Runtime, given: Layer, options: LmEvalOptions) -> HarnessModel:
    """The model that the options name. Raises UsageError, ModelNotFound."""
    model = find_model(runtime, given, options)
    settings = runtime.settings(given, model)
    model = with_adapters(runtime.library, model, settings.lora)
    require_attention(model, settings, options.batch_invariant)
    return HarnessModel(
        model,
        find_profile(runtime, model, settings, options),
        settings,
        raw=not options.apply_chat_template,
        arguments=template_options(options.template_arg),
        slots=parse_parallel(options.parallel) or AUTO_PARALLEL,
        pad_steps=options.batch_invariant,
    )


def evaluate(
    runtime: Runtime,
    model: HarnessModel,
    tasks: Sequence[str],
    cache: Path,
    options: LmEvalOptions,
) -> dict[str, Any]:
    """Run the tasks with progress on standard error, and return lm-eval's results as JSON values."""
    progress = StageProgress(runtime.streams, options.quiet or options.verbose)

    def emit(event: Event) -> None:
        if isinstance(event, LoadEvent):
            event = StageEvent(f"loading {model.model.name}", round(100 * event.fraction), 100)
        progress.emit(event)
        if isinstance(event, NoticeEvent) and not options.quiet:
            runtime.streams.notice(event)

    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        emit(StageEvent("importing lm-eval", 0, 1))
        from cerebrum_cli.eval.lm_harness import CerebrumLM
        from cerebrum_cli.eval.lm_tasks import TaskOptions, evaluate_tasks

        task_options = TaskOptions(
            options.num_fewshot,
            options.include_path,
            options.gen_kwargs,
            options.log_samples,
            options.limit,
            options.apply_chat_template,
            model.settings.system if options.apply_chat_template else None,
            cache,
        )
        open_model = partial(model.open, runtime.open_backend)
        with closing(CerebrumLM(open_model, emit, model.settings.seed or 0)) as harness_model:
            return evaluate_tasks(harness_model, tasks, task_options)
    finally:
        progress.close()


def print_results(runtime: Runtime, results: Mapping[str, Any], preset: Preset | None, options: LmEvalOptions) -> None:
    """Print lm-eval's table, or all results without the answers as JSON, and what a preset's card states."""
    from cerebrum_cli.eval.lm_tasks import averages, remarks, results_table

    if options.json:
        runtime.streams.answer_object({key: value for key, value in results.items() if key != "samples"})
        return
    runtime.streams.answer(results_table(results, preset))
    if preset and not options.quiet:
        for line in (*averages(results, preset), *remarks(results, preset)):
            runtime.streams.write_line("- ", line)


def cache_path(runtime: Runtime, model: HarnessModel) -> Path:
    """Where lm-eval saves results while they are computed: by model and settings, since its own keys are only texts."""
    settings = model.settings
    identity = runtime.library.identity(model.model)
    types = (settings.cache_type_k, settings.cache_type_v) if settings.cache_type_k or settings.cache_type_v else ()
    record = (identity, settings.ctx, settings.format, settings.seed, model.raw, dict(model.arguments), *types)
    digest = sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]
    return runtime.cache_directory / "lm-eval" / digest


def remove_cache(cache: Path) -> None:
    """Delete saved results; lm-eval adds to the name."""
    for path in cache.parent.glob(f"{cache.name}*"):
        path.unlink(missing_ok=True)
