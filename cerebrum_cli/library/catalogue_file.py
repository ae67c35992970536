"""Read models.toml; later files override earlier ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.core.json_types import JsonDict, from_json
from cerebrum_cli.core.settings import MODES, parse_toml, read_config_text, read_settings
from cerebrum_cli.library.catalogue import ModelSpec, Repository
from cerebrum_cli.library.reference import is_model_name, is_repo_id, is_safe_path

RECIPES = Path(__file__).parent.parent / "recipes"
_FILE = re.compile(r"(?i)[^/\\]+\.gguf")


def load_catalogue(paths: Sequence[Path]) -> tuple[ModelSpec, ...]:
    """Load the models of these files in order of first mention; missing files are skipped.

    A later file adds rows and overrides single keys of earlier ones; a table such as `quantizations` counts as one key.
    Raises ConfigError with file, row and key.
    """
    specs = {}
    rows: dict[str, JsonDict] = {}
    for path in paths:
        for name, row in _rows(path).items():
            rows[name] = rows.get(name, {}) | row
            try:
                specs[name] = _spec(path, name, rows[name])
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{path}: models.{name}: {error}", "edit the file") from error
    return tuple(specs.values())


def _rows(path: Path) -> dict[str, JsonDict]:
    tables = parse_toml(read_config_text(path), path)
    rows = tables.get("models", {})
    if {*tables} - {"models"} or not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise ConfigError(f"{path}: must contain only tables [models.NAME]", "edit the file")
    return rows


def _spec(path: Path, name: str, row: JsonDict) -> ModelSpec:
    values = {"title": name, **row}
    for key in {"settings", *MODES}.intersection(row):
        values[key] = read_settings(dict(row[key]), "", path, ())
    if "recipe" in row:
        values["recipe"] = str(_recipe(path.parent, row["recipe"]))
    spec = from_json(ModelSpec, values | {"name": name})
    _require_valid(spec)
    return spec


def _recipe(directory: Path, name: str) -> Path:
    for path in (directory / name, RECIPES / name):
        if path.is_file():
            return path
    raise ValueError(f"recipe {directory / name} does not exist")


def _require_valid(spec: ModelSpec) -> None:
    """Raise ValueError for names that cannot be those of a model, a repository or its files."""
    if not is_model_name(spec.name):
        raise ValueError("its name must be letters, digits, `.`, `_` and `-`")
    if spec.repo_id and not spec.file:
        raise ValueError("file is missing")
    for repo_id in filter(None, (spec.repo_id, spec.weights, spec.card, *(each.repo_id for each in spec.sources))):
        if not is_repo_id(repo_id):
            raise ValueError(f"{repo_id!r} must be OWNER/NAME")
    for source in (Repository("", spec.file or "x.gguf", revision=spec.revision), *spec.sources):
        if not _FILE.fullmatch(source.file):
            raise ValueError(f"{source.file!r} must be the name of a .gguf file")
        if source.revision and not is_safe_path(source.revision):
            raise ValueError(f"{source.revision!r} must be a commit, branch or tag")
