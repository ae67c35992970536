"""Find the fastest settings for a model: the run of `cerebrum tune`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cerebrum_cli.cli.app import devices_file
from cerebrum_cli.cli.models import find_model
from cerebrum_cli.cli.reencoding import reencode
from cerebrum_cli.core.errors import ModelFileError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.engine.machine import save_devices
from cerebrum_cli.inference.profiles import general_settings, profile_object, settings_text
from cerebrum_cli.models.adapters import with_adapters
from cerebrum_cli.models.model import is_missing
from cerebrum_cli.terminal.bars import FileProgress, StageProgress
from cerebrum_cli.terminal.interrupts import interruptible
from cerebrum_cli.terminal.reports.tuning import print_profile, print_summary
from cerebrum_cli.terminal.sinks import render_stages
from cerebrum_cli.tune.candidates import NORMAL, QUICK, THOROUGH
from cerebrum_cli.tune.tune import candidate_object, trial_options, tune_model, tuning_lock, update_store

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import Runtime
    from cerebrum_cli.cli.options import TuneOptions
    from cerebrum_cli.core.settings import Layer, Settings
    from cerebrum_cli.engine.memory import Device
    from cerebrum_cli.models.model import Model
    from cerebrum_cli.tune.candidates import Budget
    from cerebrum_cli.tune.tune import TuningResult


def tune(runtime: Runtime, given: Layer, options: TuneOptions) -> None:
    """Measure a model and save what is faster than the defaults, or compare encodings of it."""
    options.validate()
    model = find_model(runtime, given, options)
    settings = runtime.settings(given, model)
    if options.reencode:
        if given.get("lora"):
            raise UsageError("--reencode and --lora cannot be used together", "omit --lora: encodings are of the model")
        reencode(runtime, model, settings, options)
        return
    file = runtime.library.preferred(with_adapters(runtime.library, model, settings.lora))
    budget = QUICK if options.quick else THOROUGH if options.thorough else NORMAL
    result = measure(runtime, file, settings, budget, options.json or options.quiet)
    print_result(runtime, file, result, settings, options)


def measure(runtime: Runtime, model: Model, settings: Settings, budget: Budget, quiet: bool) -> TuningResult:
    """Search for the fastest settings with a progress bar, and save them. Raises ModelFileError, Interrupted."""
    with interruptible("nothing was saved"), tuning_lock(runtime.profiles().directory):
        with FileProgress(runtime.streams, quiet) as progress:
            runtime.library.digest(model, lambda done, total: progress.update("verify", done, total))
        identity, previous = runtime.library.identity(model), runtime.profile(model, settings)
        key = partial(profile_key, runtime, identity, settings)
        bench = runtime.open_bench(trial_options(model, settings), model.paths)
        try:
            search = tune_model(bench, model, settings, budget, previous, key)
            result = render_stages(search, StageProgress(runtime.streams, quiet))
        finally:
            bench.close()
        if any(map(is_missing, model.paths)) or runtime.library.identity(model) != identity:
            raise ModelFileError(model.path, "changed while it was measured", "tune it again")
        general = general_settings(settings)
        fallback = runtime.profiles(general).find(identity) if general != settings else None
        if previous and result.is_disturbed and result.profile.is_default:
            return replace(result, changes={})  # nothing was found out: the previous profile stays
        update_store(runtime.profiles(settings), result.profile, fallback)
    return result


def profile_key(
    runtime: Runtime, identity: str, settings: Settings, devices: tuple[Device, ...]
) -> tuple[str, str, str]:
    """Identity of the model, of this machine with the accelerators found, and of the build of llama.cpp."""
    save_devices(devices_file(runtime.data_directory), devices)
    store = runtime.profiles(settings)
    return identity, store.machine, store.build


def print_result(
    runtime: Runtime, model: Model, result: TuningResult, settings: Settings, options: TuneOptions
) -> None:
    """Print the profile and a summary, or one object."""
    streams = runtime.streams
    if options.json:
        tried = [candidate_object(*pair) for pair in result.tried]
        head = {"model": model.label, "file": str(model.path)}
        streams.answer_object({**head, **profile_object(result.profile), "tried": tried})
        return
    print_profile(streams, result.profile)
    if result.is_disturbed:
        problem = "other programs used the CPU during the measurement"
        streams.notice(NoticeEvent(problem, "results are unreliable; rerun when the machine is idle"))
    if not options.quiet:
        condition = settings_text(settings).replace(", ", " with ", 1)
        print_summary(streams, result, model.label, condition)
