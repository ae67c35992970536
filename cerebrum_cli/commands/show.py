"""`cerebrum show`: show a model's metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.core.errors import ModelNotFound

if TYPE_CHECKING:
    from cerebrum_cli.application.inference.profiles import Profile
    from cerebrum_cli.application.models.model import Model
    from cerebrum_cli.core.settings import Settings
    from cerebrum_cli.runtime.composition import Runtime


def show(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model, as for `cerebrum pull`.")],
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    json: options.Json = False,
    offline: options.Offline = False,  # noqa: ARG001 (always offline; every command has the option)
    quiet: options.Quiet = False,
) -> None:
    """Show a model's metadata, its prompt format, and which quantizations fit this machine.

    The network is not used; `cerebrum pull --dry-run` asks the Hub.
    """
    from cerebrum_cli.application.inference.profiles import profile_object
    from cerebrum_cli.application.models import listing
    from cerebrum_cli.terminal.bars import FileProgress
    from cerebrum_cli.terminal.tables import print_candidates, print_description

    runtime, profile = options.runtime_of(context), None
    settings = runtime.settings({"ctx": ctx, "threads": threads, "gpu_layers": gpu_layers})
    library, context_size = runtime.library, settings.ctx
    reference = library.parse(model)
    try:
        found = library.find(reference)
    except ModelNotFound as error:
        available = listing.describe_available(library, reference, context_size)
        if available is None:
            raise
        description, plan = available
        note = f"{error.message}; to install it: {error.hint}" if error.pullable else error.message
    else:
        with FileProgress(runtime.streams, quiet or json) as progress:
            description = listing.describe(library, found, lambda done, total: progress.update("verify", done, total))
        plan = listing.quantization_plan(library, found, context_size)
        profile, note = profile_of(runtime, found, settings)
    if json:
        profile_row = {"profile": profile and profile_object(profile)}
        runtime.streams.answer_object(description | profile_row | (listing.candidates_object(plan) if plan else {}))
        return
    print_description(runtime.streams, description)
    show_profile(runtime, profile)
    if plan:
        print_candidates(runtime.streams, plan)
    if note and not quiet:
        runtime.streams.info(note)


def show_profile(runtime: Runtime, profile: Profile | None) -> None:
    """Print the tuning profile, if there is one."""
    from cerebrum_cli.terminal.tuning_report import print_profile

    if profile:
        runtime.streams.answer(f"\nmeasured {profile.created}\n\n")
        print_profile(runtime.streams, profile)


def profile_of(runtime: Runtime, model: Model, settings: Settings) -> tuple[Profile | None, str]:
    """Profile of the file used for a model, and a notice if it was measured elsewhere."""
    preferred = runtime.library.preferred(model)
    profile = runtime.profile(preferred, settings)
    if profile is None and runtime.profiles().elsewhere(runtime.library.identity(preferred)):
        command = f"cerebrum tune {model.reference}"
        return None, f"its profile is from another machine or build of llama.cpp; renew it with {command}"
    return profile, ""
