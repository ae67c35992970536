"""`cerebrum tune`: measure which settings are fast on this machine, and use them from then on."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option
from cerebrum_cli.core.errors import ModelFileError, UsageError
from cerebrum_cli.core.events import NoticeEvent

if TYPE_CHECKING:
    from cerebrum_cli.application.models.model import Model
    from cerebrum_cli.application.tuning.candidates import Budget
    from cerebrum_cli.application.tuning.tune import TuningResult
    from cerebrum_cli.core.settings import Settings
    from cerebrum_cli.engine.plan import Device
    from cerebrum_cli.runtime.composition import Runtime


def tune(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The model to measure, as for `cerebrum pull`.")
    ] = None,
    quick: Annotated[bool, option("--quick", help="Only what matters most, once: half a minute on a 7B.")] = False,
    thorough: Annotated[bool, option("--thorough", help="More values, measured for longer.")] = False,
    reencode: Annotated[
        bool, option("--reencode", help="Try other encodings of the same weights instead, and keep none.")
    ] = False,
    apply: Annotated[
        str | None,
        option("--apply", help="With --reencode: keep this encoding, which answers from then on.", metavar="TYPE"),
    ] = None,
    force: Annotated[bool, option("--force", help="With --apply: also one that says other things.")] = False,
    json: options.Json = False,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    yes: options.Yes = False,
) -> None:
    """Measure which settings are fast for a model on this machine; ask, chat and batch use them from then on.

    About two minutes for a 7B. What chooses other tokens than the usual settings is not used, and nothing is tried that
    memory does not hold.
    """
    require_one_way(quick, thorough, reencode, apply, force)
    runtime = options.runtime_of(context)
    given = options.given(locals())
    found = options.find_model(runtime, given, yes, quiet, offline)
    settings = runtime.settings(given, found)
    if reencode:
        from cerebrum_cli.commands.reencoding import reencode as try_encodings

        return try_encodings(runtime, found, apply=apply, force=force, json=json, quiet=quiet, settings=settings)
    from cerebrum_cli.application.tuning.candidates import NORMAL, QUICK, THOROUGH

    answering = runtime.library.preferred(found)
    effort = QUICK if quick else THOROUGH if thorough else NORMAL
    result = measure(runtime, answering, settings, effort, json or quiet)
    show(runtime, answering, result, settings, json, quiet)
    return None


def require_one_way(quick: bool, thorough: bool, reencode: bool, apply: str | None, force: bool) -> None:
    """Raise UsageError for options that do not go together."""
    if quick and thorough:
        raise UsageError("--quick and --thorough are both given", "give one of them")
    if reencode and (quick or thorough):
        raise UsageError(f"--reencode and --{'quick' if quick else 'thorough'} are both given", "give one of them")
    if apply and not reencode:
        raise UsageError("--apply is about an encoding", "give --reencode too")
    if force and not apply:
        raise UsageError("--force is about an encoding that is applied", "give --reencode --apply TYPE too")


def measure(runtime: Runtime, model: Model, settings: Settings, effort: Budget, quiet: bool) -> TuningResult:
    """Measure, showing how far that is, and keep what came of it."""
    from cerebrum_cli.application.models.model import is_missing
    from cerebrum_cli.application.tuning.tune import alone, trial_options, tune_model, writing
    from cerebrum_cli.terminal.bars import FileProgress, StageProgress
    from cerebrum_cli.terminal.interrupts import interruptible
    from cerebrum_cli.terminal.sinks import render_stages

    with interruptible("nothing is kept of what was measured"), alone(runtime.profiles().directory):
        with FileProgress(runtime.streams, quiet) as progress:
            runtime.library.digest(model, lambda done, total: progress.update("verify", done, total))
        identity = runtime.library.identity(model)
        bench = runtime.bench(trial_options(model, settings), model, runtime.trials, runtime.capacity().device_memory)
        try:
            measuring = tune_model(bench, model, settings, effort, partial(holds_for, runtime, identity, settings))
            result = render_stages(measuring, StageProgress(runtime.streams, quiet))
        finally:
            bench.close()
        if any(map(is_missing, model.paths)) or runtime.library.identity(model) != identity:
            raise ModelFileError(model.path, "changed or went away while it was measured", "tune it again")
        with writing():
            runtime.profiles(settings).save(result.profile)
    return result


def holds_for(runtime: Runtime, identity: str, settings: Settings, devices: tuple[Device, ...]) -> tuple[str, str, str]:
    """Return the identity of the model, of this machine and of the build: the first to see what accelerators it has."""
    from cerebrum_cli.engine.machine import save_devices
    from cerebrum_cli.runtime.composition import devices_file

    save_devices(devices_file(runtime.data_directory), devices)
    store = runtime.profiles(settings)
    return identity, store.machine, store.build


def show(runtime: Runtime, model: Model, result: TuningResult, settings: Settings, json: bool, quiet: bool) -> None:
    """Print what came of it."""
    from cerebrum_cli.application.inference.profiles import profile_object, settings_text
    from cerebrum_cli.terminal.tuning_report import print_profile, tried_lines

    streams = runtime.streams
    if json:
        tried = [told for _, told in result.tried]
        told = {"model": model.reference, "file": str(model.path), **profile_object(result.profile), "tried": tried}
        streams.answer_object(told)
        return
    if not quiet:
        for line in tried_lines(result.tried):
            streams.info(line)
    print_profile(streams, result.profile)
    if result.is_disturbed:
        what = "other programs used the processors while this was measured"
        streams.notice(NoticeEvent(what, "tune again when they have ended: what it finds may be of no use"))
    if not quiet:
        given = settings_text(settings).replace(", ", " with ", 1)
        streams.info(f"ask, chat and batch use this for {model.reference} from now on{given}; --no-profile does not")
