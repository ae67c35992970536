"""`cerebrum merge`: one model made of the layers or weights of others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.terminal.interrupts import interruptible

if TYPE_CHECKING:
    from cerebrum_cli.application.merging.merge import Merge, MergeOptions
    from cerebrum_cli.application.models.model import Model
    from cerebrum_cli.merge.output_files import WrittenFile
    from cerebrum_cli.runtime import Runtime


def merge(
    context: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A mergekit recipe in YAML, or a model that has one."),
    ],
    output: Annotated[Path | None, option("-o", "--output", help="Where the model goes.", metavar="OUT.gguf")] = None,
    source: Annotated[
        list[str] | None,
        option(
            "--source",
            help="Which model a name in the recipe means (repeatable).",
            metavar="NAME=MODEL",
            callback=options.whole,
        ),
    ] = None,
    type: Annotated[
        str | None,
        option("--type", help="Write weights as Q8_0, F16, Q4_K [default: as they are].", metavar="TYPE"),
    ] = None,
    split_size: Annotated[
        str | None, option("--split-size", help="Split into files of at most this size, as 4GB.", metavar="SIZE")
    ] = None,
    name: Annotated[
        str | None, option("--name", help="What to call it here [default: as its file].", metavar="NAME")
    ] = None,
    dry_run: Annotated[bool, option("--dry-run", help="Show what would be merged and what it takes.")] = False,
    ctx: options.Ctx = None,
    json: options.Json = False,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    yes: options.Yes = False,
) -> None:
    """Make one model of others by a recipe: layers stacked byte for byte, or weights of several models averaged.

    Prints the SHA-256 of what was written.
    """
    from cerebrum_cli.application.merging.merge import merge_object, require_not_source
    from cerebrum_cli.application.merging.recipes import read_recipe, resolve_models, source_references

    runtime = options.runtime_of(context)
    library, merger, streams = runtime.library, runtime.merger, runtime.streams
    asked = read_recipe(library, recipe)
    wanted = wished(output, name, type, split_size, Path(recipe).stem if dry_run else None)
    references = source_references(library, asked, source or ())
    if not dry_run:
        merger.require_name(wanted, asked.spec)

    def here(reference: str) -> Model:
        if dry_run:
            return library.resolve(reference)
        return options.find_model(runtime, {"model": reference}, yes, quiet, offline)

    models = resolve_models(library, references, here)
    if not dry_run:
        require_not_source(models, [wanted.output])
        require_new(runtime, [wanted.output], yes)
    with interruptible("nothing has been written"):
        planned = merger.prepare(asked.recipe, models, wanted)
    told = merge_object(planned, runtime.settings({"ctx": ctx}).ctx, merger.free_bytes(wanted.output.parent))
    if not quiet:
        warn(runtime, planned)
    if dry_run:
        from cerebrum_cli.terminal.merge_report import print_merge

        streams.answer_object(told) if json else print_merge(streams, told)
        return
    merger.require_writable(planned)
    require_new(runtime, [file.path for file in planned.files if file.path != wanted.output], yes)
    written = carried_out(runtime, planned, quiet)
    if json:
        files = [{"path": str(each.path), "size": each.size, "sha256": each.sha256} for each in written]
        streams.answer_object(told | {"reference": wanted.name, "files": files})
    else:
        streams.answer("".join(f"{each.sha256}  {each.path}\n" for each in written))
    model = merger.register(planned, written)
    if not quiet:
        streams.info(f"{model.reference} is here: cerebrum ask -m {model.reference}")


def wished(
    output: Path | None, name: str | None, type: str | None, split: str | None, stem: str | None
) -> MergeOptions:
    """Return what the merge is to be. UsageError for what cannot be; without a place it goes nowhere, under a stem."""
    from cerebrum_cli.application.merging.merge import MergeOptions
    from cerebrum_cli.application.models.model import as_name, as_path, is_directory
    from cerebrum_cli.catalogue.variants import whole_name
    from cerebrum_cli.core.text import parse_size
    from cerebrum_cli.merge.target_types import parse_type

    if output is None and stem is None:
        raise UsageError("no -o: it is not said where the model goes", "name a file: -o OUT.gguf")
    path = as_path(str(output)) if output else Path(f"{stem}.gguf")
    if is_directory(path):
        raise UsageError(f"-o {path}: is a directory", "name a file")
    if path.suffix.lower() != ".gguf":
        raise UsageError(f"-o {path}: models are files that end in .gguf", f"name it {path}.gguf")
    if whole_name(path.name) != path.name:
        raise UsageError(f"-o {path}: that is how parts of models are named", "name the whole; --split-size splits it")
    if not is_directory(path.parent):
        raise UsageError(f"-o {path}: there is no directory {path.parent}", "make it, or write elsewhere")
    limit = None if split is None else parse_size(split)
    return MergeOptions(path, name or as_name(path.stem), parse_type(type) if type else None, limit)


def require_new(runtime: Runtime, paths: Iterable[Path], yes: bool) -> None:
    """Raise UsageError where a file would be replaced that nobody agrees to lose."""
    from cerebrum_cli.application.models.model import is_file

    there = next(filter(is_file, paths), None)
    if there and not (yes or runtime.streams.confirm(f"{there} is there already. Replace it?", usual=False)):
        raise UsageError(f"{there} is there already", "write elsewhere, or replace it with -y")


def warn(runtime: Runtime, planned: Merge) -> None:
    """Tell what in the recipe comes to nothing."""
    for each in planned.plan.unmatched_filters:
        what = f"the filter {each} of the recipe is part of no tensor's name, so what it says is left out"
        runtime.streams.notice(NoticeEvent(what, "name tensors as Hugging Face does, as self_attn.q_proj"))


def carried_out(runtime: Runtime, planned: Merge, quiet: bool) -> tuple[WrittenFile, ...]:
    """Merge, showing how far that is."""
    with interruptible("nothing is left of the merge"), options.file_progress(runtime, quiet) as progress:
        return runtime.merger.write(planned, lambda done, total: progress.update("merge", done, total))
