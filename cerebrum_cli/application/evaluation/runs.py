"""Stored runs: each a file of samples with its record, under a name in the data directory or at a path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebrum_cli.application.evaluation.marking import Match
from cerebrum_cli.batches.files import output_paths
from cerebrum_cli.batches.meta import Record, describe_difference, normalize, read_record
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.evals.sample import Sample, parse_sample

SUFFIX = ".jsonl"
QUESTIONS, SAMPLES = "questions", "samples"  # keys of a run's extent
_NOT_IN_NAMES = re.compile(r"[^\w.]+")


@dataclass(frozen=True, slots=True)
class Run:
    """A run, complete or not."""

    name: str
    path: Path
    record: Record

    @property
    def task(self) -> str:
        return str(self.record.fingerprint["task"])

    @property
    def model(self) -> str:
        return str(self.record.fingerprint["model"])

    @property
    def match(self) -> Match:
        """How replies were marked."""
        match: Match = self.record.fingerprint["match"]
        return match

    @property
    def changed_at(self) -> float:
        """When the last sample was written, in seconds since the epoch."""
        paths = (path for path in (self.path, output_paths(self.path).partial) if path.exists())
        return max((path.stat().st_mtime for path in paths), default=0.0)

    @property
    def samples_per_question(self) -> int:
        return int(self.record.extent[SAMPLES])

    @property
    def is_complete(self) -> bool:
        return self.path.exists() and self.record.result is not None

    def samples(self) -> list[Sample]:
        """The finished samples. Raises UsageError for a file that is not a run."""
        path = self.path if self.is_complete else output_paths(self.path).partial
        samples = []
        try:
            with path.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):  # the last line of a running or killed run may be incomplete
                        samples.append(parse_sample(json.loads(line)))
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is not a run of cerebrum eval", "check the path") from error
        return samples


class RunStore:
    """The runs in a directory, by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __iter__(self) -> Iterator[Run]:
        """Yield the readable runs, oldest first."""
        found = [(path.stat().st_mtime, path) for path in self._directory.glob(f"*{SUFFIX}.meta.json")]
        for _, meta in sorted(found):
            run = _read_run(meta.with_name(meta.name.removesuffix(".meta.json")))
            if run:
                yield run

    def find(self, reference: str) -> Run:
        """The run with a name, or at a path. Raises UsageError."""
        named = self._directory / f"{reference}{SUFFIX}"
        run = (_read_run(named) if "/" not in reference else None) or _read_run(Path(reference))
        if run is None:
            known = ", ".join(run.name for run in self) or "none; cerebrum eval creates them"
            raise UsageError(f"no run {reference!r}", f"give a path, or the name of a stored run: {known}")
        return run

    def path_for(self, fingerprint: Mapping[str, Any]) -> Path:
        """The path of the run with this fingerprint: an existing one, or a free name of its task and model."""
        wanted = normalize(fingerprint)
        base = "-".join(_NOT_IN_NAMES.sub("-", str(fingerprint[key])).strip("-") for key in ("task", "model"))
        number = 1
        while True:
            name = base if number == 1 else f"{base}-{number}"
            run = _read_run(self._directory / f"{name}{SUFFIX}")
            if run is None or describe_difference(run.record.fingerprint, wanted) is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                return self._directory / f"{name}{SUFFIX}"
            number += 1

    def delete(self, run: Run) -> None:
        """Delete the files of a run."""
        for path in output_paths(run.path).all:
            path.unlink(missing_ok=True)


def _read_run(path: Path) -> Run | None:
    """The run at a path; None without a record of one."""
    record = read_record(output_paths(path).meta) if path.parent.is_dir() else None
    if record is None or SAMPLES not in record.extent or "task" not in record.fingerprint:
        return None
    return Run(path.name.removesuffix(SUFFIX), path, record)
