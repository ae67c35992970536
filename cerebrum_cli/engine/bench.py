"""Measurements of a model, each way of loading it in a child process of its own (`engine/llama/bench_process.py`).

Thread pools of different sizes slow each other down within one process, peak memory is measured per process, and a
crash costs only one of them. Those that are compared stay loaded together while memory allows.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.files import work_directory
from cerebrum_cli.engine.machine import available_memory
from cerebrum_cli.engine.memory import CPU_UBATCH, HEADROOM, ContextOptions, Device, host_bytes, memory_needs
from cerebrum_cli.engine.memory_plan import plan_layers
from cerebrum_cli.engine.model_options import LoadOptions, Tuning
from cerebrum_cli.engine.step_costs import StepCosts

EXIT_TIMEOUT_S = 10.0  # after a process has closed its output
MIN_CPU_SHARE = 0.7  # of the CPU time of its cores, for a valid run; next to another program it would be about half
MAX_RUNS = 3  # of a job that other programs disturb, if the previous job was undisturbed in the end
ROOM = 128  # tokens of a context beyond those of its jobs; no job decodes more

JobKind = Literal["prefill", "decode"]
JOB_KINDS: tuple[JobKind, ...] = ("prefill", "decode")


class BenchJob(NamedTuple):
    """Work to time: a number of prompt tokens to prefill, or of steps to decode after `depth` tokens of context.

    Several sequences decode together. To save time, the context of a single one may consist of `copies` of its first
    tokens; where the KV cache cannot hold copies, it is these tokens alone.
    """

    kind: JobKind
    tokens: int
    sequences: int = 1
    depth: int = 16
    copies: int = 1


class Closeness(NamedTuple):
    """How similar two evaluations of a text are.

    `top1_agreement` is the share of tokens after which both rank the same next token first, `mean_kld` the mean
    Kullback-Leibler divergence of the probabilities, in nats.
    """

    top1_agreement: float
    mean_kld: float


class BenchError(EngineError):
    """These settings cannot be tried on this machine; the message gives the reason."""


class BenchProcess:
    """A child process with a loaded model, which runs functions of `engine/llama/bench_process.py` by name."""

    load_s: float
    devices: tuple[Device, ...]

    def __init__(self, options: LoadOptions, text: str) -> None:
        self.peak_memory = 0  # of the process, in bytes
        self.host_bytes = 0  # planned for its weights and contexts
        self._child = subprocess.Popen(
            # -P: do not import modules from the current directory
            [sys.executable, "-P", "-m", "cerebrum_cli.engine.llama.bench_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C interrupts only the parent, which then kills the child
        )
        try:
            self.load_s, self.devices = self.request("load", options, text)
        except BaseException:
            self.close()
            raise

    def request(self, name: str, *arguments: Any) -> Any:
        """Call a function in the process. BenchError if it fails, or the process has exited."""
        assert self._child.stdin and self._child.stdout
        try:
            pickle.dump((name, arguments), self._child.stdin)
            self._child.stdin.flush()
            result, self.peak_memory = pickle.load(self._child.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            code = self._child.wait(EXIT_TIMEOUT_S)
            reason = f"llama.cpp ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
            raise BenchError(reason, "show its log with cerebrum ask --set verbose=on") from None
        if isinstance(result, BenchError):
            raise result
        return result

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


class Bench:
    """Measures tunings of one model, given its default options and files; most methods may raise BenchError.

    Temporary files go to a new directory in `directory`. `gpus` are those known before the first process.
    `disturbed_jobs` counts the jobs during which other programs used the CPU in every attempt.
    """

    def __init__(
        self,
        options: LoadOptions,
        text: str,
        directory: Path | None = None,
        gpus: tuple[Device, ...] = (),
    ) -> None:
        self.disturbed_jobs = 0
        self._options = options
        self._text = text
        self._processes: dict[Tuning, BenchProcess] = {}
        self._resources = contextlib.ExitStack()
        folder = work_directory(directory or Path(tempfile.gettempdir()), "cerebrum-tune")
        self._folder = self._resources.enter_context(folder)
        self._gpus = gpus
        self._devices: tuple[Device, ...] | None = None
        self._is_busy = False

    @property
    def devices(self) -> tuple[Device, ...]:
        if self._devices is None:
            self._devices = self._process(Tuning()).devices
        return self._devices

    def speed(self, tuning: Tuning, job: BenchJob) -> float:
        """Measure tokens per second; repeated if other programs use the CPU, and then the best run counts.

        Several sequences are evaluated like those of a batch. On a machine that stays busy, repeating does not help: a
        job is not repeated if the previous one was in vain.
        """
        speeds: list[float] = []
        length = max(job.tokens, job.depth) + ROOM  # the same for longer jobs at this depth, which reuse the context
        for _ in range(1 if self._is_busy else MAX_RUNS):
            speed, share = self._request(tuning, length, job.sequences, "time_job", job)
            speeds.append(speed)
            self._is_busy = not self.devices and share < MIN_CPU_SHARE
            if not self._is_busy:
                return speeds[-1]
        self.disturbed_jobs += 1
        return max(speeds)

    def step_costs(self, tuning: Tuning, rows: tuple[int, ...], seconds: float, depth: int) -> StepCosts:
        """Measure steps of these numbers of rows of one sequence, ascending from 1, for about `seconds`.

        They follow `depth` tokens.
        """
        length = depth + max(rows)
        steps = self._request(tuning, length + ROOM, 1, "time_steps", length, rows, seconds)
        measured, durations = zip(*steps, strict=True)
        return StepCosts(measured, tuple(round(duration / durations[0], 3) for duration in durations))

    def peak_memory(self, tuning: Tuning) -> int:
        return self._process(tuning).peak_memory

    def reload(self, tuning: Tuning) -> float:
        self._close(load_settings(tuning))
        return self._process(tuning).load_s

    def write_logits(self, tokens: int) -> Path:
        """Write the logits for the first tokens of the probe text to a file that exists until `close`."""
        path = self._folder / f"{tokens}.npy"
        self._request(Tuning(), tokens, 1, "write_logits", tokens, path)
        return path

    def compare_logits(self, logits: Path, tokens: int) -> Closeness:
        closeness: Closeness = self._request(Tuning(), tokens, 1, "compare_logits", tokens, logits)
        return closeness

    def release(self) -> None:
        """End all processes to free memory; the next measurement starts them again."""
        for settings in list(self._processes):
            self._close(settings)

    def close(self) -> None:
        self.release()
        self._resources.close()

    def _request(self, tuning: Tuning, length: int, sequences: int, name: str, *arguments: Any) -> Any:
        options = self._options.with_tuning(replace(tuning, slots=sequences))
        process = self._process(tuning, replace(options.context, length=length, n_ubatch=CPU_UBATCH))
        return process.request("measure", replace(tuning, slots=sequences), length, name, *arguments)

    def _process(self, tuning: Tuning, context: ContextOptions | None = None) -> BenchProcess:
        """Get or start a process with these settings, closing others for memory; BenchError if it lacks memory."""
        settings, context = load_settings(tuning), context or ContextOptions(0, 1, 1, CPU_UBATCH)
        options, sizes = self._options.with_tuning(settings), self._options.file.sizes
        process = self._processes.pop(settings, None)  # reinserted last, so that the least recently used closes first
        offloaded = plan_layers(sizes, options.gpu_layers, context, self._gpus)
        planned = host_bytes(memory_needs(sizes, context, offloaded), self._gpus)
        needed = planned - process.host_bytes if process else planned
        try:
            while needed > 0 and needed + HEADROOM > available_memory():
                if not self._processes:  # before the system kills this process or another
                    total, free = (needed + HEADROOM) / 1e9, available_memory() / 1e9
                    raise BenchError(f"needs {total:.1f} GB; {free:.1f} GB is free")
                self._close(next(iter(self._processes)))
        finally:
            if process:
                self._processes[settings] = process
        if process is None:
            process = self._processes[settings] = BenchProcess(options, self._text)
            self._devices = process.devices
        process.host_bytes = max(planned, process.host_bytes)
        return process

    def _close(self, settings: Tuning) -> None:
        if process := self._processes.pop(settings, None):
            process.close()


# Creates a bench from load options, a directory for temporary files and the known GPUs.
BenchFactory = Callable[..., Bench]


def load_settings(tuning: Tuning) -> Tuning:
    """Part of a tuning that is fixed when the model is loaded; the rest can change with the context."""
    return replace(tuning, n_ubatch=None, slots=None, flash_attention=None)
