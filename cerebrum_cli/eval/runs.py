"""Stored runs: each a file of samples with its record, under a name in the data directory or at a path."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any

from cerebrum_cli.batch.files import OutputPaths, identify, journal_errors, lock_partial, output_paths
from cerebrum_cli.batch.meta import Record, describe_difference, normalize, read_record
from cerebrum_cli.batch.resume_state import ResumeState, decide
from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import exists
from cerebrum_cli.core.locks import remove_abandoned
from cerebrum_cli.eval.marking import Match
from cerebrum_cli.eval.sample import Sample, parse_sample

SUFFIX = ".jsonl"
QUESTIONS, SAMPLES = "questions", "samples"  # keys of a run's extent
_NOT_IN_NAMES = re.compile(r"[^\w.]+")
_MAX_NAME = 200  # bytes; file systems have 255, of which suffixes take some
_REQUIRED = {"task", "model", "match"}  # keys of a run's fingerprint


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
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"{path} is not a run of cerebrum eval", "check the path") from error
        return samples


class RunStore:
    """The runs in a directory, by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __iter__(self) -> Iterator[Run]:
        """Yield the runs with a readable record, oldest first."""
        runs = []
        for meta in self._directory.glob(f"*{SUFFIX}.meta.json"):
            with contextlib.suppress(BatchError):
                runs.append(read_run(meta.with_name(meta.name.removesuffix(".meta.json"))))
        yield from sorted(filter(None, runs), key=lambda run: (run.changed_at, run.name))

    def find(self, reference: str) -> Run:
        """The run with a name, or at a path. Raises UsageError."""
        named = self._directory / f"{reference}{SUFFIX}"
        run = (read_run(named) if "/" not in reference else None) or read_run(Path(reference))
        if run is not None:
            return run
        if exists(Path(reference)):
            raise UsageError(f"{reference} is not a run of cerebrum eval", "check the path")
        near = get_close_matches(reference, [run.name for run in self], 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "cerebrum runs list  shows the stored runs"
        raise UsageError(f"no run named {reference!r}", hint)

    def path_for(self, fingerprint: Mapping[str, Any]) -> Path:
        """The path of the run with this fingerprint: an existing one, or a free name of its task and model."""
        wanted = normalize(fingerprint)
        base = _name(str(fingerprint["task"]), str(fingerprint["model"]))
        names = (base if number == 1 else f"{base}-{number}" for number in count(1))
        paths = (self._directory / f"{name}{SUFFIX}" for name in names)
        return next(path for path in paths if _is_free(path) or _has_fingerprint(path, wanted))

    def delete(self, run: Run) -> None:
        """Delete the files of a run. Raises BatchError if a process is writing it, or they cannot be deleted."""
        paths = output_paths(run.path)
        with journal_errors(run.path), lock_partial(paths.partial):
            for path in paths.all:
                path.unlink(missing_ok=True)
            remove_abandoned(run.path.parent, f".{run.path.name}.")


def read_run(path: Path) -> Run | None:
    """The run at a path; None without a record of one. Raises UsageError, BatchError."""
    record = read_record(output_paths(path).meta) if path.parent.is_dir() else None
    if record is None or SAMPLES not in record.extent or not record.fingerprint.keys() >= _REQUIRED:
        return None
    return Run(path.name.removesuffix(SUFFIX), path, record)


def require_run(path: Path) -> Run:
    """The run at a path. Raises UsageError if there is none."""
    run = read_run(path)
    if run is None:
        raise UsageError(f"{path} is not a run of cerebrum eval", "check the path")
    return run


def samples_to_keep(path: Path, fingerprint: Mapping[str, Any], extent: Mapping[str, int]) -> list[Sample]:
    """The samples of a run that resumes or extends the one at a path. Raises BatchError where that is refused."""
    if not path.parent.is_dir():
        return []
    paths = output_paths(path)
    has_rows = paths.partial.exists() and paths.partial.stat().st_size > 0
    state = ResumeState(has_rows, read_record(paths.meta), identify(paths.output))
    step = decide(state, Record(normalize(fingerprint), 0, extent=extent), paths)
    return [] if step == "begin" else require_run(path).samples()


def _name(*parts: str) -> str:
    """A file name of some parts, without what is special in a shell or an option."""
    name = "-".join(filter(None, (_NOT_IN_NAMES.sub("-", part).strip("-.") for part in parts)))
    return name.encode()[:_MAX_NAME].decode(errors="ignore")


def _is_free(path: Path) -> bool:
    return not any(each.exists() for each in OutputPaths(path).all)


def _has_fingerprint(path: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether the run at a path has this fingerprint."""
    with contextlib.suppress(BatchError):
        run = read_run(path)
        return run is not None and describe_difference(run.record, Record(fingerprint, 0)) is None
    return False
