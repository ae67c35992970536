"""Child process that loads a model and measures it: pickled requests on standard input, answers on standard output.

A request is the name of a method of `BenchModel` with its arguments. The process exits when its input ends. Everything
runs on the main thread.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy
from numpy.typing import NDArray

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import CerebrumError, EngineError
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.bench import BenchError, BenchJob, Closeness
from cerebrum_cli.engine.llama.devices import accelerators
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.machine import peak_memory, thread_count
from cerebrum_cli.engine.memory import ContextOptions, Device
from cerebrum_cli.engine.memory_plan import resolve
from cerebrum_cli.engine.model_options import LoadOptions, Tuning
from cerebrum_cli.engine.step import StopFlag, TokenRow
from cerebrum_cli.engine.step_costs import MAX_ROLLBACK

MIN_ROUNDS, MAX_ROUNDS = 2, 9  # of steps with each number of rows
MIN_VISIT_S = 0.01  # steps of one number of rows in a round are repeated for so long
WARM_UP_STEPS = 1  # not timed: llama.cpp builds its compute graph in the first step


class BenchModel:
    _context: ContextOptions  # of the backend's context, if it has one
    _copies = 1  # of its tokens requested for slot 0

    def load(self, options: LoadOptions, text: str) -> tuple[float, tuple[Device, ...]]:
        """Load the model, and the text that it evaluates: the seconds the model took, and the GPUs found."""
        start = perf_counter()
        self._options = options
        self.backend = open_llama(options, lambda _: None, StopFlag())
        load_s = perf_counter() - start
        self._tokens = self.backend.tokenize([Text(text, trusted=False)])
        return load_s, tuple(accelerators())

    def measure(self, tuning: Tuning, length: int, name: str, *arguments: Any) -> Any:
        """Call a method on the tokens of the text, in a context for `tuning.slots` sequences of this length."""
        self._configure(tuning, length, MAX_ROLLBACK if name == "time_steps" else 0)
        return getattr(self, name)(self._tokens * (1 + length // len(self._tokens)), *arguments)

    def time_job(self, text: tuple[int, ...], job: BenchJob) -> tuple[float, float]:
        """Tokens per second, and the share of the CPU time of its threads that this process got."""
        if job.kind == "decode":
            return self._time_decode(text[: job.depth // job.copies], job)
        self._evaluate(text[: job.depth])  # the first steps of a context are not timed
        started = perf_counter(), process_time()
        self._evaluate(text[: job.tokens])
        return rates(started, job.tokens, self._threads(is_batch=True))

    def time_steps(
        self, text: tuple[int, ...], count: int, rows: Sequence[int], seconds: float
    ) -> list[tuple[int, float]]:
        """Shortest duration of a step with each number of rows after `count` tokens, all with logits.

        Row counts take turns, in rounds, for about `seconds`. Other programs lengthen a short step more than a long
        one, because its threads wait for each other more often: medians would make draft tokens look cheap.
        CerebrumError if the rows cannot be removed again.
        """
        prefix = count - max(rows)
        self._evaluate(text[:prefix])
        shortest = dict.fromkeys(rows, inf)
        start = perf_counter()
        for turn in range(MAX_ROUNDS):
            if turn >= MIN_ROUNDS and perf_counter() > start + seconds:
                break
            for size in rows:
                shortest[size] = min(shortest[size], *self._repeat_step(text[:prefix], size))
        return list(shortest.items())

    def write_logits(self, text: tuple[int, ...], count: int, path: Path) -> None:
        """Write the logits after each token but the last one by one, since they may not fit in memory together."""
        shape = (count - 1, self.backend.size)
        file = numpy.lib.format.open_memmap(path, "w+", numpy.float32, shape)  # type: ignore[no-untyped-call]
        for index, row in enumerate(self._logits(text[:count])):
            file[index] = row
        file.flush()

    def compare_logits(self, text: tuple[int, ...], count: int, path: Path) -> Closeness:
        return closeness(numpy.load(path, mmap_mode="r"), self._logits(text[:count]))

    def _configure(self, tuning: Tuning, length: int, n_rs_seq: int) -> None:
        options, sequences = self._options.with_tuning(tuning), tuning.slots or 1
        offloads = bool(accelerators()) and options.gpu_layers != "0"
        fills = sequences == 1 and self.backend.trimmable_length == inf  # with copies, loaded into a second slot
        requested = replace(
            options.context,
            length=length,
            slots=2 if fills else sequences,
            kv_unified=fills,
            n_rs_seq=n_rs_seq,
            batch_invariant=sequences > 1 and not offloads,
            n_threads=options.context.n_threads or thread_count(),
        )
        context = resolve(requested, options.file.sizes, (int(offloads),))
        if not self.backend.capacity or self.backend.slots < sequences or context != self._context:
            self.backend.configure(context)
            self.backend.reserve(length)
            self._context = context
        if self.backend.slots < sequences:
            raise CerebrumError(f"memory can hold {self.backend.slots} of {sequences} sequences")

    def _threads(self, is_batch: bool) -> int:
        return (is_batch and self._context.n_threads_batch) or self._context.n_threads

    def _evaluate(self, tokens: tuple[int, ...], copies: int = 1) -> None:
        """Empty all slots, and evaluate a prompt in slot 0, with logits for its last token.

        In a unified KV cache, the slot then gets copies of all its cells. They have the same positions, and attention
        reads all of them.
        """
        context, self._copies = self.backend.context, copies
        for slot in range(self.backend.slots):
            context.clear(slot)
        for start, end in self._chunks(len(tokens)):
            self.backend.decode(
                [TokenRow(0, index, tokens[index], index == len(tokens) - 1) for index in range(start, end)]
            )
        if copies > 1 and self._context.kv_unified:
            state = context.checkpoint(0, is_whole=True)
            for _ in range(copies - 1):
                context.restore(1, state, is_whole=True)
                context.share_cells(1, 0)

    def _logits(self, tokens: tuple[int, ...]) -> Iterator[NDArray[numpy.float32]]:
        """Yield the logits after each token but the last; each array is valid until the next one is requested."""
        self.backend.context.clear(0)
        for start, end in self._chunks(len(tokens) - 1):
            self.backend.decode([TokenRow(0, index, tokens[index], True) for index in range(start, end)])
            yield from (self.backend.logits(row) for row in range(end - start))

    def _chunks(self, count: int) -> Iterator[tuple[int, int]]:
        start = 0
        while start < count:
            end = min(count, start + min(self.backend.prefill_chunk(start), self.backend.max_outputs))
            yield start, end
            start = end

    def _time_decode(self, prefix: tuple[int, ...], job: BenchJob) -> tuple[float, float]:
        backend, slots = self.backend, range(job.sequences)
        # A measurement before may have left the prefix, which takes long to evaluate.
        if self._copies != job.copies or any(
            backend.context.length(slot) < len(prefix) or not backend.context.trim(slot, len(prefix)) for slot in slots
        ):
            self._evaluate(prefix, job.copies)
            for slot in slots[1:]:
                backend.context.copy(0, slot)
        samplers = [backend.sampler(SamplingParams(), 0, None, prefix) for _ in slots]
        last, started = [prefix[0]] * job.sequences, (0.0, 0.0)
        try:
            for step in range(job.tokens + WARM_UP_STEPS):
                if step == WARM_UP_STEPS:
                    started = perf_counter(), process_time()
                position = len(prefix) + step
                backend.decode([TokenRow(slot, position, token, True) for slot, token in enumerate(last)])
                last = [sampler.sample(slot) for slot, sampler in enumerate(samplers)]
            return rates(started, job.tokens * job.sequences, self._threads(job.sequences > 1))
        finally:
            for sampler in samplers:
                sampler.close()

    def _repeat_step(self, prefix: tuple[int, ...], size: int) -> list[float]:
        """Seconds of a step that is repeated and undone; the first, which builds the graph, counts only if alone.

        From a recurrent state all rows but the first can be removed, so sequences grow up to their capacity.
        """
        backend, durations = self.backend, list[float]()
        while sum(durations) < MIN_VISIT_S:
            if (begin := backend.context.length(0)) + size > backend.capacity:
                self._evaluate(prefix)
                begin = len(prefix)
            rows = [TokenRow(0, at, prefix[at % len(prefix)], True) for at in range(begin, begin + size)]
            start = perf_counter()
            backend.decode(rows)
            backend.logits(size - 1)  # waits until a GPU is done
            durations.append(perf_counter() - start)
            if not (backend.context.trim(0, begin) or backend.context.trim(0, begin + 1)):
                raise CerebrumError("its cache cannot be trimmed")
        return durations[WARM_UP_STEPS:] or durations


def rates(started: tuple[float, float], tokens: int, threads: int) -> tuple[float, float]:
    """Tokens per second, and the share of the CPU time of its threads that this process got since it started."""
    wall, cpu = started
    seconds = perf_counter() - wall
    return tokens / seconds, (process_time() - cpu) / seconds / threads


def closeness(reference: NDArray[numpy.float32], other: Iterable[NDArray[numpy.float32]]) -> Closeness:
    same, total = 0, 0.0
    for row, against in zip(reference, other, strict=True):  # converted to double row by row
        p, q = log_softmax(row), log_softmax(against)
        same += int(against.argmax()) == int(row.argmax())
        total += float((numpy.exp(p) * (p - q)).sum())
    return Closeness(same / len(reference), total / len(reference))


def log_softmax(row: NDArray[numpy.float32]) -> NDArray[numpy.float64]:
    shifted = row.astype("float64") - float(row.max())
    return shifted - float(numpy.log(numpy.exp(shifted).sum()))


def main() -> None:
    """Answer requests until the input ends, with a BenchError and the first line of llama.cpp's log for an error."""
    model = BenchModel()
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
            answer = getattr(model, name)(*arguments)
        except EOFError:
            return
        except CerebrumError as error:
            log = error.log[:1] if isinstance(error, EngineError) else ()
            answer = BenchError(": ".join((error.message, *log)), error.hint)
        except OSError as error:
            answer = BenchError(f"{error.filename or 'a temporary file'}: {error.strerror}", "free disk space")
        pickle.dump((answer, peak_memory()), sys.stdout.buffer)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
