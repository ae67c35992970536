"""Try ways of opening a model, each in a process of its own, and tell how fast they are.

Threads of different number in one process slow one another down, a process tells its own peak of memory, and one that
dies takes nothing with it. Two that are compared are kept open together as long as memory holds them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from cerebrum_cli.engine.bench import child_process as children
from cerebrum_cli.engine.bench.protocol import Closeness, Facts, Job, NoTrial
from cerebrum_cli.engine.machine import available_memory
from cerebrum_cli.engine.plan import HEADROOM, Device, LoadOptions, Tuning

CHILD = "cerebrum_cli.engine.llama.trial"
PREFIX = "cerebrum-tune-"
ABANDONED_S = 86400.0  # after which a folder has no owner any more
LEAST_SHARE = 0.7  # of its processors that a run must have had; two threads beside another program have a half
USUAL_SHARE = 0.9  # and of the share it has at its best, which is less than all where many threads wait for each other
RUNS = 3  # of a disturbed job
CHUNK = 2**22


class Trial:
    """One process with one model loaded."""

    def __init__(self, options: LoadOptions, complaints: Path) -> None:
        self._complaints = complaints
        with complaints.open("wb") as errors:
            self._child = children.started(CHILD, errors)
        try:
            told = self.ask({"open": asdict(options) | {"path": str(options.path)}})
        except BaseException:
            self.close()
            raise
        self.load_s: float = told["load_s"]
        self.devices = tuple(Device(**device) for device in told["devices"])
        self.peak = 0
        self.cache_bytes = 0  # that it was let have beside the weights

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to one question. NoTrial where there is none."""
        children.tell(self._child, question)
        assert self._child.stdout
        line = self._child.stdout.readline()
        if not line:
            raise NoTrial(f"llama.cpp ended with {self._ending()}", "see its log with cerebrum ask -v")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NoTrial(*answer["error"])
        self.peak = answer.get("peak", 0)
        return answer

    def close(self) -> None:
        """End the process."""
        children.end(self._child)

    def _ending(self) -> str:
        how = children.ending(self._child)
        said = self._complaints.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((f": {line}" for line in reversed(said) if line.strip()), "")
        return how if how.startswith("signal") else how + last


@dataclass(frozen=True, slots=True)
class Opening:
    """What of a tuning the loading of a model depends on; the rest can be changed later."""

    repack: bool | None
    gpu_layers: str | None
    n_threads: int | None
    n_threads_batch: int | None

    @classmethod
    def of(cls, tuning: Tuning) -> Opening:
        """Return that part of a tuning."""
        return cls(tuning.repack, tuning.gpu_layers, tuning.n_threads, tuning.n_threads_batch)


class ProcessBench:
    """Trials in processes; `options` are those without any tuning, `paths` the files of the model.

    What is written lies in a folder of its own in `directory`. `offloadable` bytes of a model need not go into memory.
    """

    def __init__(
        self,
        options: LoadOptions,
        text: str,
        paths: Sequence[Path] = (),
        directory: Path | None = None,
        offloadable: int = 0,
    ) -> None:
        self._options = options
        self._text = text
        self._paths = paths or (options.path,)
        self._open: dict[Opening, Trial] = {}
        if directory:
            directory.mkdir(parents=True, exist_ok=True)
            sweep(directory)
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, dir=directory)
        self._offloadable = offloadable
        self.disturbances = 0
        self._devices: tuple[Device, ...] | None = None
        self._shares: dict[tuple[Any, ...], float] = {}
        self._logits: dict[tuple[Tuning, int], Path] = {}
        self._is_warm = False

    def __enter__(self) -> ProcessBench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @property
    def devices(self) -> tuple[Device, ...]:
        """The accelerators there are, as the first process saw them."""
        if self._devices is None:
            self._devices = self._trial(Opening.of(Tuning())).devices
        return self._devices

    def speed(self, tuning: Tuning, job: Job) -> float:
        """Return tokens a second, of the best of some runs where other programs had part of the processors."""
        length, speeds = job.tokens + 64, []
        for _ in range(RUNS):
            told = self._ask(tuning, {"do": job._asdict(), "text": self._text}, length, job.sequences)
            speeds.append(float(told["speed"]))
            if self.devices or self._had_them_all(tuning, job, told["share"]):
                return speeds[-1]
        self.disturbances += 1
        return max(speeds)

    def _had_them_all(self, tuning: Tuning, job: Job, share: float) -> bool:
        """Return whether a run had its processors to itself, by the share of them it had and others like it before."""
        like = (tuning.n_threads, tuning.n_threads_batch, job.kind, job.sequences > 1)
        self._shares[like] = max(share, self._shares.get(like, 0.0))
        return share >= max(LEAST_SHARE, USUAL_SHARE * self._shares[like])

    def facts(self, tuning: Tuning) -> Facts:
        """Return what is known of the process this is tried in."""
        trial = self._trial(Opening.of(tuning))
        return Facts(trial.load_s, trial.peak)

    def reload(self, tuning: Tuning) -> float:
        """Load the model once more and return the seconds it took."""
        self._end(Opening.of(tuning))
        return self._trial(Opening.of(tuning)).load_s

    def closeness(self, reference: Tuning, tuning: Tuning, tokens: int) -> Closeness:
        """Compare two ways of evaluating the first tokens of the probe text."""
        return self.compared(self.written(reference, tokens), tuning, tokens)

    def written(self, tuning: Tuning, tokens: int) -> Path:
        """Return the file, kept until this is closed, of the logits after the first tokens of the probe text."""
        path = self._logits.get((tuning, tokens))
        if path is None:
            path = Path(self._folder.name, f"{len(self._logits)}.npy")
            self._ask(tuning, {"write": str(path), "tokens": tokens, "text": self._text}, tokens, 1)
            self._logits[tuning, tokens] = path
        return path

    def compared(self, logits: Path, tuning: Tuning, tokens: int) -> Closeness:
        """Compare with logits that were written, of another file's evaluation of the same tokens too."""
        told = self._ask(tuning, {"compare": str(logits), "tokens": tokens, "text": self._text}, tokens, 1)
        return Closeness(*told["closeness"])

    def free(self) -> None:
        """End all processes; what is asked next opens them again."""
        for opening in list(self._open):
            self._end(opening)

    def close(self) -> None:
        """End all that is open."""
        self.free()
        self._folder.cleanup()

    def _ask(self, tuning: Tuning, question: Mapping[str, Any], length: int, sequences: int) -> dict[str, Any]:
        options = self._options.with_tuning(replace(tuning, slots=None))
        token_bytes = options.shape.with_cache_type(options.cache_type).kv_bytes_per_token
        trial = self._trial(Opening.of(tuning), token_bytes * length * sequences)
        return trial.ask({**question, "tuning": asdict(tuning), "length": length, "sequences": sequences})

    def _trial(self, opening: Opening, cache_bytes: int = 0) -> Trial:
        """Return the process with a model opened so; others are closed where memory does not hold it beside them.

        NoTrial where it does not hold it alone.
        """
        options = self._options.with_tuning(Tuning(**asdict(opening)))
        trial = self._open.pop(opening, None)  # the one used last goes last
        weights = options.shape.weight_bytes
        if opening.gpu_layers != "0":
            weights = max(0, weights - self._offloadable)
        more = cache_bytes - trial.cache_bytes if trial else weights + cache_bytes
        try:
            while self._open and not has_room(more):
                self._end(next(iter(self._open)))
            require_room(more)
        finally:
            if trial:
                self._open[opening] = trial
        if trial is None:
            if not self._is_warm:
                read_through(self._paths)
                self._is_warm = True
            complaints = Path(self._folder.name, f"{len(self._open)}-{time.monotonic_ns()}.log")
            trial = self._open[opening] = Trial(options, complaints)
            self._devices = trial.devices
        trial.cache_bytes = cache_bytes or trial.cache_bytes
        return trial

    def _end(self, opening: Opening) -> None:
        if trial := self._open.pop(opening, None):
            trial.close()


def has_room(more: int) -> bool:
    """Return whether so many bytes more leave some of memory alone; none are always there."""
    return more <= 0 or more + HEADROOM <= available_memory()


def require_room(more: int) -> None:
    """Raise NoTrial before memory runs out: the system would end this process, or another."""
    if not has_room(more):
        needed, free = (more + HEADROOM) / 1e9, available_memory() / 1e9
        raise NoTrial(f"needs {needed:.1f} GB of memory, and {free:.1f} GB are free")


def sweep(directory: Path) -> None:
    """Remove what killed processes have left here a day ago or earlier."""
    for folder in directory.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < time.time() - ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)


def read_through(paths: Sequence[Path]) -> None:
    """Read files once, so that the first model is not the only one that is loaded from the disk."""
    buffer = memoryview(bytearray(CHUNK))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
