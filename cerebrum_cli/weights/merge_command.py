"""`cerebrum merge`: merge models from a recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.cli.command import argument, environment_layer
from cerebrum_cli.cli.options import PullOptions, json_option
from cerebrum_cli.core.declaration import PATH, TEXTS, option, option_group, switch
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import is_directory, is_file
from cerebrum_cli.core.json_types import JsonDict

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.library.installed import InstalledModel
    from cerebrum_cli.weights.merge import Merge, MergeOptions


@option_group
class MergeCommand(PullOptions):
    """Stacks layers, copied byte for byte, or combines the weights of several models.

    Examples:
      cerebrum merge recipe.yaml -o merged.gguf --dry-run
      cerebrum merge recipe.yaml -o merged.gguf --source author/7b=cerebrum-7b
    """

    recipe: str = argument("RECIPE", "A mergekit recipe in YAML, or a catalog model built by merging")
    source: tuple[str, ...] = option(
        "Use MODEL in place of NAME in the recipe (repeatable)", "Input", TEXTS, default=(), metavar="NAME=MODEL"
    )
    from_weights: bool = switch("Use the safetensors of repositories, not GGUF files", "Input")
    output: Path | None = option(
        "File to write [required without --dry-run]", "Output", PATH, short="-o", metavar="OUT.gguf"
    )
    type: str | None = option("Weight type, such as Q8_0 [default: unchanged]", "Output", metavar="TYPE")
    name: str | None = option("Name for the model [default: from OUT]", "Output", metavar="NAME")
    dry_run: bool = switch("Show the plan, and the memory and disk it needs", "Output")
    json: bool = json_option()

    def run(self, app: App) -> None:
        from cerebrum_cli.terminal.progress import FileProgress, interruptible
        from cerebrum_cli.weights.merge import write
        from cerebrum_cli.weights.merge_tables import print_merge

        streams = app.streams
        with interruptible("nothing was written"):
            plan = plan_merge(app, self.recipe, self)
        description = describe(plan, app.settings(environment_layer("ctx")).ctx)
        if notice := plan.plan.unfit_notice(self.type):
            streams.note(notice)
        if self.dry_run:
            if self.json:
                streams.answer(description)
            else:
                print_merge(streams, description)
            return
        with interruptible("nothing was written"), FileProgress(streams) as progress:
            model = write(app.library, plan, partial(progress.update, "merge"))
        sha256 = app.library.registry.digest(model.path).sha256
        if self.json:
            files = [file | {"sha256": sha256} for file in description["files"]]
            streams.answer(description | {"reference": plan.options.name, "files": files})
        else:
            streams.answer(f"{sha256}  {plan.options.output}\n")
        streams.note(f"{model.reference} is installed: cerebrum ask -m {model.reference}")


def plan_merge(app: App, recipe: str, options: MergeCommand) -> Merge:
    """Find the models, which may be pulled, and plan the merge; ask before a file is replaced."""
    from cerebrum_cli.weights.building import find_source
    from cerebrum_cli.weights.merge import prepare, read_recipe, require_not_source, resolve_models, source_references

    library = app.library
    parsed, quantization = read_recipe(library, recipe)
    target = merge_options(options, Path(recipe).stem)
    references = source_references(library, parsed.models, quantization, options.source)
    if options.dry_run:
        if options.from_weights:
            hint = "download first, and pass the folders with --source"
            raise UsageError.conflict("--dry-run", "--from-weights", hint)
        return prepare(parsed, resolve_models(library, references, library.resolve), target)
    library.require_free_name(target.name, library.catalogue.merged(recipe), path=target.output.resolve())

    def find(reference: str) -> InstalledModel:
        if options.from_weights:
            with app.puller(options.offline, yes=options.yes, from_weights=True) as puller:
                return find_source(puller, reference)
        return options.find_model(app, app.settings({"model": reference}))

    models = resolve_models(library, references, find)
    require_not_source(models, target.output)
    question = f"{target.output} already exists. Replace it?"
    if is_file(target.output) and not (options.yes or app.streams.confirm(question, False)):
        raise UsageError(f"{target.output} already exists", "choose another file, or replace it with -y")
    return prepare(parsed, models, target)


def merge_options(options: MergeCommand, stem: str) -> MergeOptions:
    from cerebrum_cli.core.files import as_path
    from cerebrum_cli.core.text import name_from_stem
    from cerebrum_cli.weights.merge import MergeOptions
    from cerebrum_cli.weights.target import parse_type

    if options.output is None and not options.dry_run:
        raise UsageError("no output file given (-o)", "name a file: -o OUT.gguf")
    path = as_path(str(options.output)) if options.output else Path(f"{stem}.gguf")
    if path.suffix.lower() != ".gguf" or is_directory(path):
        raise UsageError(f"-o {path} is not a .gguf file", "name a file that ends in .gguf")
    if not is_directory(path.parent):
        raise UsageError(f"-o {path}: directory {path.parent} does not exist", "create it first, or write elsewhere")
    return MergeOptions(
        path, options.name or name_from_stem(path.stem), parse_type(options.type) if options.type else None
    )


def describe(merge: Merge, context: int | None) -> JsonDict:
    """Keys of `merge --dry-run --json`; sizes in bytes."""
    import shutil
    from collections import Counter

    from cerebrum_cli.engine.capacity import Capacity, planned_context

    plan = merge.plan
    path = merge.options.output
    size = plan.size
    tensors = plan.tensors
    header = plan.header_at(path)
    context = planned_context(context, header.context_length)
    return {
        "name": merge.options.name,
        "merge_method": merge.recipe.method,
        "models": {name: model.reference for name, model in merge.models.items()},
        "layers": [
            {"layer": number, "sources": [{"model": model, "layer": layer} for model, layer in sources]}
            for number, sources in enumerate(merge.layers)
        ],
        "tensors": len(tensors),
        "tensor_types": Counter(tensor.kind.name for tensor in tensors),
        "parameters": header.parameters,
        "size": size,
        "files": [{"path": str(path), "size": size}],
        "copied": sum(tensor.size for tensor in tensors if tensor.is_copy),
        "kv_bytes_per_token": header.kv_bytes_per_token,
        "context": context,
        "memory": Capacity(0).needs(header.sizes.with_weights(size), context).total,
        "free": shutil.disk_usage(path.parent).free,
    }
