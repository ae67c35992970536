"""A model on this machine, and what a path is before anything of it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cerebrum_cli.catalogue.cache import CachedModel
from cerebrum_cli.catalogue.reference import HubReference, NameReference
from cerebrum_cli.catalogue.registry import ModelFile
from cerebrum_cli.catalogue.spec import ModelSpec
from cerebrum_cli.catalogue.variants import parts_of
from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.formats.plain import EMBEDDED, PLAIN_FORMATS
from cerebrum_cli.gguf.header import Header, read_header

# In the metadata of a merge made here: the recipe, what its models were called, and the format they are asked in.
MERGE_RECIPE, MERGE_SOURCES, MERGE_FORMAT = "cerebrum.merge.recipe", "cerebrum.merge.sources", "cerebrum.format"


@dataclass(frozen=True)
class Model:
    """A model on this machine: its files in order, its row of the catalogue, and where it was found, if anywhere.

    One that `is_shadowed` shares its short name with another, which that name means.
    """

    name: str
    paths: tuple[Path, ...]
    spec: ModelSpec | None = None
    file: ModelFile | None = None
    cached: CachedModel | None = None
    is_shadowed: bool = False

    @property
    def path(self) -> Path:
        """The file llama.cpp is given: the only one, or the first part."""
        return self.paths[0]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in self.paths)

    @cached_property
    def header(self) -> Header:
        """What the file says of itself; ModelFileError if it is no whole GGUF file."""
        return read_header(self.path)

    @cached_property
    def is_readable(self) -> bool:
        """Whether the file is there, whole and a model."""
        try:
            _ = self.header
        except ModelFileError:
            return False
        return True

    @property
    def is_derived(self) -> bool:
        """Whether it was made here of another model."""
        return self.file is not None and self.file.source == "derived"

    @property
    def merged_from(self) -> tuple[str, ...]:
        """What the models it was merged of were called where that was done; none where it is no merge."""
        sources = self.header.metadata.get(MERGE_SOURCES)
        return tuple(sources.splitlines()) if isinstance(sources, str) else ()

    @property
    def display_name(self) -> str:
        """The quantisation, or the file's stem where none is stated."""
        return self.quantization or self.path.stem

    @property
    def usage_key(self) -> str:
        """What is remembered of its use is remembered under this: it outlives a new commit of its repository."""
        return f"{self.cached.repo_id}/{self.cached.names[0]}" if self.cached else str(self.path)

    @property
    def quantization(self) -> str | None:
        """The quantisation its file's name in the cache states, else the file itself."""
        return self.cached.quantization if self.cached else self.header.quantization

    @property
    def reference(self) -> str:
        """What to call it so that this one is meant, whatever else is here."""
        if self.file or self.cached is None:
            return self.name
        if self.is_shadowed:
            return str(HubReference(self.cached.repo_id, file=self.cached.names[0], revision=self.cached.commit))
        return str(NameReference(self.name, self.cached.quantization))

    @property
    def references(self) -> set[str]:
        """All references that mean this one and no other."""
        if self.cached is None:
            return {self.reference}
        unnamed = replace(self, file=None, name=self.spec.name if self.spec else self.cached.repo_id)
        return {self.reference, unnamed.reference}

    @property
    def known_format(self) -> str | None:
        """The prompt format the catalogue gives this model, or the one that the models it is merged of are asked in."""
        if self.spec and self.spec.format:
            return self.spec.format
        merged = self.header.metadata.get(MERGE_FORMAT)
        return merged if isinstance(merged, str) and merged in PLAIN_FORMATS else None

    @property
    def default_format(self) -> str | None:
        """The format this model is asked in without --format: the catalogue's, else its embedded template."""
        return self.known_format or (EMBEDDED if self.header.chat_template else None)

    @property
    def trained_context(self) -> int:
        """Tokens of context the model was trained with; what the file does not say, the catalogue may."""
        return self.header.context_length or (self.spec and self.spec.context_size) or 2048


def model_paths(path: Path) -> tuple[Path, ...]:
    """Return all files of the model whose first is at `path`; ModelFileError where it is another part of it."""
    names = parts_of(path.name)
    if names[0] != path.name:
        raise ModelFileError(path, "is not the first part of its model", f"name {path.parent / names[0]}")
    return tuple(path.parent / name for name in names)


def name_from_stem(stem: str) -> str:
    """Return a file name's stem as the name of a model, which has no spaces and no colons."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")


def as_path(reference: str) -> Path:
    """Return a reference as a path, `~` replaced where it stands for a home directory."""
    try:
        return Path(reference).expanduser()
    except RuntimeError:  # nobody has that name
        return Path(reference)


def is_file(path: Path) -> bool:
    """Return whether a path surely names a file."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a directory that cannot be entered, a name that is too long
        return False


def is_directory(path: Path) -> bool:
    """Return whether a path surely names a directory."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_missing(path: Path) -> bool:
    """Return whether a path surely names nothing; what cannot be looked at may be there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def require_loadable(path: Path, header: Header) -> None:
    """Raise ModelFileError for a layout that llama.cpp has given up, before it is loaded or downloaded."""
    if header.per_expert_tensors:
        raise ModelFileError(
            path,
            "made before April 2024, with one tensor an expert, which llama.cpp no longer loads",
            "pull a newer conversion of this model; for Cerebrum-1.0-8x7b: cerebrum pull cerebrum-8x7b",
        )
