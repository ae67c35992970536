"""`cerebrum tune`: find the fastest settings for a model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cerebrum_cli.cli.completion_values import installed_models
from cerebrum_cli.cli.model_choice import find_model
from cerebrum_cli.cli.options import PullOptions
from cerebrum_cli.cli.signature import Json, SettingKeys, composed, positional
from cerebrum_cli.core.errors import CerebrumError, ModelFileError
from cerebrum_cli.core.settings import ATTENTION_KEYS, Layer, Settings

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.engine.memory import Device
    from cerebrum_cli.models.model import InstalledModel
    from cerebrum_cli.terminal.streams import Streams
    from cerebrum_cli.tune.candidates import Candidate
    from cerebrum_cli.tune.tune import TuningResult


@composed
def tune(
    app: App,
    overrides: Annotated[Layer, SettingKeys(("lora", "threads", "gpu_layers", *ATTENTION_KEYS))],
    options: PullOptions,
    reference: Annotated[
        str | None, positional("MODEL", "Model to tune [default: the default model]", installed_models)
    ] = None,
    json: Json = False,
) -> None:
    """Measures settings on this machine, which takes about two minutes for a 7B. From then on, ask, chat and batch use
    the fastest.

    Settings that affect the output beyond rounding, or do not fit in memory, are not tried.

    Examples:
      cerebrum tune cerebrum-7b
    """
    from cerebrum_cli.model.profiles import profile_object, settings_text
    from cerebrum_cli.terminal.reports import print_profile, print_summary

    overrides = {**overrides, "model": reference}
    model = find_model(app, overrides, options)
    settings, streams = app.settings(overrides, model), app.streams
    model = app.library.with_adapters(model, settings.lora)
    result = measure(app, model, settings, replace(app.streams, is_quiet=json or options.quiet))
    if json:
        tried = [candidate_object(candidate) for candidate in result.tried]
        head = {"model": model.label, "file": str(model.path)}
        streams.answer_object({**head, **profile_object(result.profile), "tried": tried})
    else:
        print_profile(streams, result.profile)
    if result.is_disturbed:
        problem = "nothing was saved: other programs used the CPU during the measurement"
        raise CerebrumError(problem, "run it again when the machine is idle")
    if not (json or streams.is_quiet):
        print_summary(streams, result, model.label + settings_text(settings).replace(", ", " with ", 1))


def measure(app: App, model: InstalledModel, settings: Settings, streams: Streams) -> TuningResult:
    """Search for the fastest settings with a progress bar, and save them unless other programs disturbed it.

    Raises ModelFileError, Interrupted.
    """
    from cerebrum_cli.engine.machine import save_devices
    from cerebrum_cli.model.installation import DEVICES
    from cerebrum_cli.model.profiles import general_settings
    from cerebrum_cli.models.model import is_missing
    from cerebrum_cli.terminal.interrupts import interruptible
    from cerebrum_cli.terminal.progress import FileProgress, StageProgress
    from cerebrum_cli.terminal.sinks import render_stages
    from cerebrum_cli.tune.tune import bench_options, tune_model, tuning_lock, update_store

    def profile_key(devices: tuple[Device, ...]) -> tuple[str, str, str]:
        save_devices(app.data_directory / DEVICES, devices)
        store = app.profiles(settings)
        return identity, store.machine, store.build

    with interruptible("nothing was saved"), tuning_lock(app.profiles().directory):
        with FileProgress(streams) as progress:
            app.library.digest(model, lambda done, total: progress.update("verify", done, total))
        identity, previous = app.library.identity(model), app.profile(model, settings)
        with closing(app.open_bench(bench_options(model, settings), model.paths)) as bench:
            search = tune_model(bench, model, settings, previous, profile_key)
            result = render_stages(search, StageProgress(streams))
        if any(map(is_missing, model.paths)) or app.library.identity(model) != identity:
            raise ModelFileError(model.path, "changed while it was measured", "run cerebrum tune again")
        if result.is_disturbed:
            return result
        general = general_settings(settings)
        fallback = app.profiles(general).find(identity) if general != settings else None
        update_store(app.profiles(settings), result.profile, fallback)
    return result


def candidate_object(candidate: Candidate) -> dict[str, Any]:
    return {
        "settings": candidate.tuning.overrides,
        "batch": candidate.is_batch,
        "ratios": dict(zip(("prompt_tokens_per_second", "tokens_per_second"), candidate.ratios, strict=True)),
        "dropped": candidate.dropped,
    }
