"""Read the sizes of models.toml, and the commits that its rows are pinned to, from the Hugging Face Hub again.

`make catalogue` edits the file in place. Comments are kept, except that a size read from the Hub is no longer rounded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomlkit

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.events import Progress
from cerebrum_cli.library.cache import COMMIT
from cerebrum_cli.library.catalogue import Repository
from cerebrum_cli.library.hub import list_repository
from cerebrum_cli.library.library import CATALOGUE
from cerebrum_cli.library.reference import same_quantization, variants
from cerebrum_cli.terminal.progress import FileProgress
from cerebrum_cli.terminal.streams import standard_streams


def main(path: Path) -> int:
    """Update a catalog; 1 if a repository or a quantization was not found."""
    streams, problems = standard_streams(), 0
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    with FileProgress(streams) as progress:
        for source in sources(document["models"]):
            try:
                reports = update(source, progress)
            except CerebrumError as error:
                reports = [error.message]
            for report in reports:
                streams.draw(f"{source['repo_id']}: {report}\n")
            problems += len(reports)
    path.write_text(tomlkit.dumps(document), encoding="utf-8")
    return 1 if problems else 0


def sources(models: Any) -> Iterator[Any]:
    """The tables that name a repository: rows, and their alternatives."""
    for row in models.values():
        yield from (each for each in (row, *row.get("alternatives", ())) if "repo_id" in each)


def update(source: Any, progress: Progress) -> list[str]:
    """Update a source's sizes, and its revision if that is a commit; report missing quantizations."""
    revision = source.get("revision", "")
    is_pinned = bool(COMMIT.fullmatch(revision))
    listing = list_repository(source["repo_id"], progress, None if is_pinned else revision or None)
    if is_pinned:
        source["revision"] = listing.commit
    repository, sizes = Repository(source["repo_id"], source["file"]), {}
    for variant in variants(listing.files):
        if repository.matches(variant.files[0].rpartition("/")[2]):
            sizes[variant.quantization] = sum(listing.file(name).size for name in variant.files)
    missing = []
    for name, known in source.get("quantizations", {}).items():
        size = next((size for each, size in sizes.items() if same_quantization(each, name)), None)
        if size is None:
            missing.append(f"no quantization {name}")
            continue
        if size != known:
            source["quantizations"][name] = tomlkit.value(f"{size:_}")
        trivia = source["quantizations"][name].trivia
        if "rounded" in trivia.comment:
            trivia.comment, trivia.comment_ws = "", ""
    return missing


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else CATALOGUE))
