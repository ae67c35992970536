"""`cerebrum merge` on the terminal: its questions, progress and results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cerebrum_cli.application.merging.merge import Merge, MergeOptions, Merger, merge_object, require_not_source
from cerebrum_cli.application.merging.recipes import RequestedMerge, resolve_models, source_references
from cerebrum_cli.application.models.model import Model, is_file
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.bars import FileProgress
from cerebrum_cli.terminal.interrupts import interruptible
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_table

COLUMNS = ("layers", "model", "source layers")


@dataclass(frozen=True, slots=True)
class MergeCommand:
    """One merge or its preview; `context` is the context size that memory is estimated for."""

    streams: Streams
    merger: Merger
    context: int | None
    as_json: bool
    quiet: bool
    yes: bool

    def preview(self, request: RequestedMerge, sources: Sequence[str], options: MergeOptions) -> None:
        """Print what a merge would do and the resources it needs; write nothing."""
        references = source_references(self.merger.library, request, sources)
        models = resolve_models(self.merger.library, references, self.merger.library.resolve)
        description = self._describe(self._prepare(request, models, options))
        if self.as_json:
            self.streams.answer_object(description)
        else:
            print_merge(self.streams, description)

    def run(
        self, request: RequestedMerge, sources: Sequence[str], options: MergeOptions, find: Callable[[str], Model]
    ) -> None:
        """Write a merge and print its digests; `find` resolves a reference, downloading the model if needed."""
        references = source_references(self.merger.library, request, sources)
        self.merger.require_name(options, request.spec)
        models = resolve_models(self.merger.library, references, find)
        require_not_source(models, [options.output])
        self._require_new([options.output])
        merge = self._prepare(request, models, options)
        description = self._describe(merge)
        self.merger.require_writable(merge)
        self._require_new(file.path for file in merge.files if file.path != options.output)
        with interruptible("nothing was written"), FileProgress(self.streams, self.quiet) as progress:
            written = self.merger.write(merge, lambda done, total: progress.update("merge", done, total))
        if self.as_json:
            files = [{"path": str(each.path), "size": each.size, "sha256": each.sha256} for each in written]
            self.streams.answer_object(description | {"reference": options.name, "files": files})
        else:
            self.streams.answer("".join(f"{each.sha256}  {each.path}\n" for each in written))
        model = self.merger.register(merge, written)
        if not self.quiet:
            self.streams.info(f"{model.reference} is installed: cerebrum ask -m {model.reference}")

    def _prepare(self, request: RequestedMerge, models: Mapping[str, Model], options: MergeOptions) -> Merge:
        with interruptible("nothing was written"):
            merge = self.merger.prepare(request.recipe, models, options)
        for filter in () if self.quiet else merge.plan.unmatched_filters:
            hint = "use Hugging Face tensor names, such as self_attn.q_proj"
            self.streams.notice(NoticeEvent(f"the recipe's filter {filter} matches no tensor and is ignored", hint))
        return merge

    def _describe(self, merge: Merge) -> dict[str, Any]:
        return merge_object(merge, self.context, self.merger.free_bytes(merge.options.output.parent))

    def _require_new(self, paths: Iterable[Path]) -> None:
        """Raise UsageError if a file exists and the user does not agree to replace it."""
        existing = next(filter(is_file, paths), None)
        if existing and not (self.yes or self.streams.confirm(f"{existing} already exists. Replace it?", usual=False)):
            raise UsageError(f"{existing} already exists", "choose another file, or replace it with -y")


def print_merge(streams: Streams, merge: Mapping[str, Any]) -> None:
    """Print the origin of each layer, and the resources a merge needs."""
    print_table(streams, COLUMNS, [row for run in runs(merge["layers"]) for row in rows(run, merge["models"])])
    types = ", ".join(f"{name} {count}" for name, count in merge["tensor_types"].items())
    copied = merge["copied"] / merge["size"]
    facts = {
        "parameters": f"{merge['parameters']:,}",
        "tensors": f"{merge['tensors']} ({types})",
        "size": f"{format_size(merge['size'])} ({merge['size']} bytes), {copied:.0%} copied unchanged",
        "KV cache": f"{merge['kv_bytes_per_token']:,} bytes per token",
        "memory": f"{format_size(merge['memory_to_merge'])} to merge,"
        f" {format_size(merge['memory'])} to run with a context of {merge['context']} tokens",
        "disk": f"{format_size(merge['size'])} needed, {format_size(merge['free'])} free",
    }
    width = max(map(len, facts))
    streams.answer("\n" + "".join(f"{name:<{width}}  {fact}\n" for name, fact in facts.items()))


def runs(layers: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Split layers into runs that are consecutive in their source models too."""
    begin = 0
    for before, layer in pairwise(layers):
        following = [{**source, "layer": source["layer"] + 1} for source in before["sources"]]
        if layer["sources"] != following:
            yield layers[begin : layer["layer"]]
            begin = layer["layer"]
    yield layers[begin:]


def rows(run: Sequence[Mapping[str, Any]], models: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Table rows of a run, one per source model; only the first has the layer numbers of the merge."""
    first, last = run[0], run[-1]
    for number, (begin, end) in enumerate(zip(first["sources"], last["sources"], strict=True)):
        layers = span(first["layer"], last["layer"]) if number == 0 else ""
        yield layers, models[begin["model"]], span(begin["layer"], end["layer"])


def span(first: int, last: int) -> str:
    """Format a range of layer numbers, such as "0-7"."""
    return str(first) if first == last else f"{first}-{last}"
