"""`cerebrum tune`: find the fastest settings for a model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from cerebrum_cli.cli.completion_values import installed_models
from cerebrum_cli.cli.model_choice import find_model
from cerebrum_cli.cli.options import PullOptions
from cerebrum_cli.cli.signature import Json, composed, positional, settings_options
from cerebrum_cli.core.errors import CerebrumError, ConfigError
from cerebrum_cli.core.settings import ATTENTION_KEYS, Layer, Settings

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.engine.memory import Device
    from cerebrum_cli.library.model import InstalledModel
    from cerebrum_cli.terminal.streams import Streams
    from cerebrum_cli.tune.tune import TuningResult


@composed
def tune(
    app: App,
    overrides: Annotated[Layer, settings_options(("lora", "threads", "gpu_layers", *ATTENTION_KEYS))],
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
    from cerebrum_cli.replies.profiles import profile_object, settings_text
    from cerebrum_cli.terminal.reports import print_profile, print_summary

    overrides = {**overrides, "model": reference}
    model = find_model(app, overrides, options)
    settings, streams = app.settings(overrides, model), app.streams
    model = app.library.with_adapters(model, settings.lora)
    result = measure(app, model, settings, replace(app.streams, is_quiet=json or options.quiet))
    if json:
        speeds = ("prompt_tokens_per_second", "tokens_per_second")
        tried = [
            {
                "settings": candidate.tuning.overrides,
                "batch": candidate.is_batch,
                "ratios": dict(zip(speeds, candidate.ratios, strict=True)),
                "dropped": candidate.dropped,
            }
            for candidate in result.tried
        ]
        profile = profile_object(result.profile)
        streams.answer_object({"model": model.label, "file": str(model.path), **profile, "tried": tried})
    else:
        print_profile(streams, result.profile)
    if result.is_disturbed:
        problem = "nothing was saved: other programs used the CPU during the measurement"
        raise CerebrumError(problem, "run it again when the machine is idle")
    if not (json or streams.is_quiet):
        print_summary(streams, result, model.label + settings_text(settings).replace(", ", " with ", 1))


def measure(app: App, model: InstalledModel, settings: Settings, streams: Streams) -> TuningResult:
    """Search for the fastest settings with a progress bar, and save them unless other programs disturbed it.

    Raises Interrupted.
    """
    from cerebrum_cli.core.files import lock_file, translate_os_errors
    from cerebrum_cli.engine.machine import save_devices
    from cerebrum_cli.replies.installation import DEVICES
    from cerebrum_cli.terminal.interrupts import interruptible
    from cerebrum_cli.terminal.progress import FileProgress, StageProgress
    from cerebrum_cli.terminal.sinks import render_stages
    from cerebrum_cli.tune.tune import bench_options, tune_model

    def profile_key(devices: tuple[Device, ...]) -> tuple[str, str, str]:
        save_devices(app.data_directory / DEVICES, devices)
        store = app.profiles(settings)
        return identity, store.machine, store.build

    # One search at a time, since two would slow each other down; what cannot be written fails before it is measured.
    directory = app.profiles().directory
    with translate_os_errors(ConfigError, directory):
        directory.mkdir(parents=True, exist_ok=True)
        busy = CerebrumError("another cerebrum tune is running", "wait until it has finished")
        lock = lock_file(directory / "lock", busy, is_required=False)
    with interruptible("nothing was saved"), lock:
        with FileProgress(streams) as progress:
            app.library.registry.digest(model.path, lambda done, total: progress.update("verify", done, total))
        identity, previous = app.library.identity(model), app.profile(model, settings)
        with closing(app.open_bench(bench_options(model, settings))) as bench:
            result = render_stages(tune_model(bench, model, settings, previous, profile_key), StageProgress(streams))
        if result.is_disturbed:
            return result
        store, profile = app.profiles(settings), result.profile
        with translate_os_errors(ConfigError, store.directory):
            if profile.is_default and not profile.speculative_uses:
                store.discard(profile.model)
            else:
                store.save(profile)
    return result
