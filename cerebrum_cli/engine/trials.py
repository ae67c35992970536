"""Bench that measures each way of loading a model in its own child process.

Thread pools of different sizes slow each other down within one process, peak memory is measured per process, and a
crash costs only one trial. Trials that are compared stay loaded together while memory allows.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cerebrum_cli.core.locks import work_directory
from cerebrum_cli.engine import child_process
from cerebrum_cli.engine.drafts.costs import StepCosts
from cerebrum_cli.engine.load_options import LoadOptions, Tuning
from cerebrum_cli.engine.machine import available_memory
from cerebrum_cli.engine.memory import (
    CPU_UBATCH,
    HEADROOM,
    ContextOptions,
    Device,
    host_bytes,
    memory_needs,
    plan_layers,
)
from cerebrum_cli.engine.protocol import Closeness, Job, LoadStats, TrialError

CHILD = "cerebrum_cli.engine.llama.trial"
MIN_CPU_SHARE = 0.7  # of the CPU time of its cores, for a valid run; next to another program it would be about half
MIN_SHARE_OF_BEST = 0.9  # of the best share of such runs, which is below 1 if many threads wait for each other
MAX_RUNS = 3  # of a job that other programs disturb, if the previous job was undisturbed in the end
READ_BYTES = 2**22
DRAFT_PREFIX_TOKENS = 128  # evaluated before the steps that are timed for drafts


class Trial:
    """A child process with a loaded model."""

    def __init__(self, options: LoadOptions, log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._child = child_process.start(CHILD, errors)
        try:
            answer = self.request({"load": asdict(options) | {"path": str(options.path)}})
        except BaseException:
            self.close()
            raise
        self.load_s: float = answer["load_s"]
        self.devices = tuple(Device(**device) for device in answer["devices"])
        self.peak_memory = 0
        self.host_bytes = 0  # planned for its weights and contexts

    def request(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message and wait for the answer. TrialError if it is an error, or the process has exited."""
        child_process.send(self._child, message)
        assert self._child.stdout
        line = self._child.stdout.readline()
        if not line:
            raise TrialError(f"llama.cpp ended with {self._exit_reason()}", "show its log with cerebrum ask -v")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TrialError(*answer["error"])
        self.peak_memory = answer.get("peak_memory", 0)
        return answer

    def close(self) -> None:
        """Kill the process."""
        child_process.kill(self._child)

    def _exit_reason(self) -> str:
        """Exit status; after an exit code also the last line of the log."""
        status = child_process.exit_status(self._child)
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((f": {line}" for line in reversed(lines) if line.strip()), "")
        return status if status.startswith("signal") else status + last


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """Part of a tuning that is fixed when the model is loaded; the rest can change with the context."""

    repack: bool | None
    gpu_layers: str | None
    n_threads: int | None
    n_threads_batch: int | None

    @classmethod
    def of(cls, tuning: Tuning) -> LoadSettings:
        """Extract that part of a tuning."""
        return cls(tuning.repack, tuning.gpu_layers, tuning.n_threads, tuning.n_threads_batch)


class ProcessBench:
    """Runs trials of a model with the given default options and files.

    Temporary files go to a new directory in `directory`. `gpus` are those known before the first trial.
    """

    def __init__(
        self,
        options: LoadOptions,
        text: str,
        paths: Sequence[Path] = (),
        directory: Path | None = None,
        gpus: tuple[Device, ...] = (),
    ) -> None:
        self._options = options
        self._text = text
        self._paths = paths or (options.path,)
        self._trials: dict[LoadSettings, Trial] = {}
        self._resources = contextlib.ExitStack()
        parent = directory or Path(tempfile.gettempdir())
        self._folder = self._resources.enter_context(work_directory(parent, "cerebrum-tune"))
        self._gpus = gpus
        self.disturbed_jobs = 0
        self._is_busy = False
        self._devices: tuple[Device, ...] | None = None
        self._shares: dict[tuple[Any, ...], float] = {}
        self._logits: dict[tuple[Tuning, int], Path] = {}
        self._is_page_cache_warm = False

    @property
    def devices(self) -> tuple[Device, ...]:
        """GPUs found by the first process."""
        if self._devices is None:
            self._devices = self._trial(LoadSettings.of(Tuning())).devices
        return self._devices

    def speed(self, tuning: Tuning, job: Job) -> float:
        """Measure tokens per second; repeated if other programs use the CPU, and then the best run counts.

        On a machine that stays busy, repeating does not help: a job is not repeated if the previous one was in vain.
        """
        length, speeds = job.tokens + 64, []
        for _ in range(1 if self._is_busy else MAX_RUNS):
            answer = self._request(tuning, {"job": job._asdict(), "text": self._text}, length, job.sequences)
            speeds.append(float(answer["speed"]))
            self._is_busy = not (self.devices or self._had_enough_cpu(tuning, job, answer["cpu_share"]))
            if not self._is_busy:
                return speeds[-1]
        self.disturbed_jobs += 1
        return max(speeds)

    def _had_enough_cpu(self, tuning: Tuning, job: Job, share: float) -> bool:
        """Whether a run was undisturbed, by its share of CPU time and that of earlier runs like it."""
        key = (tuning.n_threads, tuning.n_threads_batch, job.kind, job.sequences > 1)
        self._shares[key] = max(share, self._shares.get(key, 0.0))
        return share >= max(MIN_CPU_SHARE, MIN_SHARE_OF_BEST * self._shares[key])

    def step_costs(self, tuning: Tuning, rows: tuple[int, ...], seconds: float) -> StepCosts:
        """Measure steps of these numbers of rows of one sequence, or of some of them, after a prefix."""
        length = DRAFT_PREFIX_TOKENS + max(rows)
        message = {"rows": rows, "seconds": seconds, "tokens": length, "text": self._text}
        measured, seconds_each = zip(*self._request(tuning, message, length, 1)["step_s"], strict=True)
        return StepCosts(measured, tuple(round(each / seconds_each[0], 3) for each in seconds_each)).validated()

    def load_stats(self, tuning: Tuning) -> LoadStats:
        """Load time and peak memory of the process with these settings."""
        trial = self._trial(LoadSettings.of(tuning))
        return LoadStats(trial.load_s, trial.peak_memory)

    def reload(self, tuning: Tuning) -> float:
        """Load the model again and measure the seconds."""
        self._close_trial(LoadSettings.of(tuning))
        return self._trial(LoadSettings.of(tuning)).load_s

    def closeness(self, reference: Tuning, tuning: Tuning, tokens: int) -> Closeness:
        """Compare two tunings on the first tokens of the probe text."""
        return self.compare_logits(self.write_logits(reference, tokens), tuning, tokens)

    def write_logits(self, tuning: Tuning, tokens: int) -> Path:
        """Write the logits for the first tokens of the probe text to a file that exists until `close`."""
        path = self._logits.get((tuning, tokens))
        if path is None:
            path = self._folder / f"{len(self._logits)}.npy"
            self._request(tuning, {"write": str(path), "tokens": tokens, "text": self._text}, tokens, 1)
            self._logits[tuning, tokens] = path
        return path

    def compare_logits(self, logits: Path, tuning: Tuning, tokens: int) -> Closeness:
        """Compare with the logits that another bench wrote for the same tokens."""
        answer = self._request(tuning, {"compare": str(logits), "tokens": tokens, "text": self._text}, tokens, 1)
        return Closeness(*answer["closeness"])

    def release(self) -> None:
        """End all processes to free memory; the next measurement starts them again."""
        for settings in list(self._trials):
            self._close_trial(settings)

    def close(self) -> None:
        """End all processes and delete temporary files."""
        self.release()
        self._resources.close()

    def _request(self, tuning: Tuning, message: Mapping[str, Any], length: int, sequences: int) -> dict[str, Any]:
        options = self._options.with_tuning(replace(tuning, slots=None))
        context = ContextOptions(
            length,
            sequences,
            1,
            CPU_UBATCH,
            cache_type_k=options.cache_type_k,
            cache_type_v=options.cache_type_v,
        )
        trial = self._trial(LoadSettings.of(tuning), context)
        return trial.request({**message, "tuning": asdict(tuning), "length": length, "sequences": sequences})

    def _trial(self, settings: LoadSettings, context: ContextOptions | None = None) -> Trial:
        """Get or start the process with these settings, closing others if memory requires it.

        TrialError if memory cannot hold it even alone.
        """
        options = self._options.with_tuning(Tuning(**asdict(settings)))
        trial = self._trials.pop(settings, None)  # reinserted last, so that the least recently used closes first
        context = context or ContextOptions(0, 1, 1, CPU_UBATCH)
        offloaded = plan_layers(options.sizes, options.gpu_layers, context, self._gpus)
        total = host_bytes(memory_needs(options.sizes, context, offloaded), self._gpus)
        needed = total - trial.host_bytes if trial else total
        try:
            while self._trials and not has_memory(needed):
                self._close_trial(next(iter(self._trials)))
            require_memory(needed)
        finally:
            if trial:
                self._trials[settings] = trial
        if trial is None:
            if not self._is_page_cache_warm:
                warm_page_cache(self._paths)
                self._is_page_cache_warm = True
            log = self._folder / f"{len(self._trials)}-{time.monotonic_ns()}.log"
            trial = self._trials[settings] = Trial(options, log)
            self._devices = trial.devices
        trial.host_bytes = max(total, trial.host_bytes)
        return trial

    def _close_trial(self, settings: LoadSettings) -> None:
        if trial := self._trials.pop(settings, None):
            trial.close()


def has_memory(needed: int) -> bool:
    """Whether this many more bytes fit, leaving some memory free."""
    return needed <= 0 or needed + HEADROOM <= available_memory()


def require_memory(needed: int) -> None:
    """Raise TrialError before memory runs out and the system kills this process or another."""
    if not has_memory(needed):
        total, free = (needed + HEADROOM) / 1e9, available_memory() / 1e9
        raise TrialError(f"needs {total:.1f} GB of memory, but only {free:.1f} GB is free")


def warm_page_cache(paths: Sequence[Path]) -> None:
    """Read files once, so that the first load is not the only one that waits for the disk."""
    buffer = memoryview(bytearray(READ_BYTES))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
