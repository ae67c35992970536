"""Child process that loads a model and measures it: JSON requests on standard input, answers on standard output.

It exits when its input ends. Everything runs on the main thread.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy

from cerebrum_cli.core.errors import CerebrumError, EngineError
from cerebrum_cli.core.parts import Text
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.backend import Row, StopFlag
from cerebrum_cli.engine.llama.backend import LlamaBackend
from cerebrum_cli.engine.llama.devices import accelerators
from cerebrum_cli.engine.llama.load import context_options, open_llama
from cerebrum_cli.engine.load_options import AdapterFile, LoadOptions, Tuning
from cerebrum_cli.engine.machine import peak_memory
from cerebrum_cli.engine.protocol import Closeness
from cerebrum_cli.gguf.sizes import ModelSizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREFIX_TOKENS = 16  # evaluated before decoding
SIMILAR = 0.95  # of the probability of the most likely token
MEASURED_FIRST = (1, 16, 4, 32, 8, 64, 2)  # numbers of rows, the most important first
MIN_ROUNDS, MAX_ROUNDS = 2, 9  # of steps with each number of rows
MIN_VISIT_S = 0.01  # steps of one number of rows in a round are repeated for so long
WARM_UP_STEPS = 1  # not timed: llama.cpp builds its compute graph in the first step


class LoadedModel:
    """A model and its current context."""

    def __init__(self, options: LoadOptions) -> None:
        start = perf_counter()
        self.options = options
        self.backend: LlamaBackend = open_llama(options, lambda _: None, StopFlag())
        self.load_s = perf_counter() - start
        self._context_key: tuple[Any, ...] = ()
        self._tokens: dict[str, tuple[int, ...]] = {}

    def configure(self, tuning: Tuning, length: int, sequences: int) -> None:
        """Create a context for a number of sequences of this length, or clear the current one if it is the same."""
        key = (tuning, length, sequences)
        if key == self._context_key:
            for slot in range(self.backend.slots):
                self.backend.clear(slot)
            return
        self._context_key = ()
        options = self.options.with_tuning(Tuning(**{**tuning.overrides, "slots": sequences}))
        offloads = bool(accelerators()) and options.gpu_layers != "0"
        self._context = context_options(options, length, True, offloads)
        self.backend.configure(self._context, sequences > 1 and not offloads)
        self.backend.reserve(length)
        if self.backend.slots < sequences:
            raise CerebrumError(f"memory can hold {self.backend.slots} of {sequences} sequences")
        self._context_key = key

    def threads(self, is_batch: bool) -> int:
        """Number of threads that evaluate several rows, or one."""
        options = self._context
        return (is_batch and options.n_threads_batch) or options.n_threads

    def tokens(self, text: str, count: int) -> tuple[int, ...]:
        """First tokens of a text, which is repeated if it is too short."""
        if text not in self._tokens:
            self._tokens[text] = self.backend.tokenize([Text(text, trusted=False)])
        tokens = self._tokens[text]
        return (tokens * (1 + count // len(tokens)))[:count]

    def prefill(self, tokens: tuple[int, ...]) -> None:
        """Evaluate a prompt in slot 0, with logits for its last token."""
        start, backend = 0, self.backend
        while start < len(tokens):
            end = min(len(tokens), start + backend.prefill_chunk(start))
            backend.decode([Row(0, index, tokens[index], index == len(tokens) - 1) for index in range(start, end)])
            start = end


class Stopwatch:
    """Measures wall time and CPU time of this process, which runs on a number of threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._wall, self._cpu = perf_counter(), process_time()

    def result(self, tokens: int) -> dict[str, float]:
        """Tokens per second, and the share of the CPU time of its threads that this process got."""
        seconds = perf_counter() - self._wall
        return {"speed": tokens / seconds, "cpu_share": (process_time() - self._cpu) / seconds / self._threads}


def time_prefill(model: LoadedModel, tokens: tuple[int, ...]) -> dict[str, float]:
    """Time the prefill of a prompt; the first steps of a context are not timed."""
    model.prefill(tokens[:PREFIX_TOKENS])
    model.backend.clear(0)
    stopwatch = Stopwatch(model.threads(is_batch=True))
    model.prefill(tokens)
    return stopwatch.result(len(tokens))


def time_decode(model: LoadedModel, tokens: tuple[int, ...], steps: int, sequences: int) -> dict[str, float]:
    """Time decoding in a number of sequences that share a prefix."""
    backend = model.backend
    model.prefill(tokens)
    for slot in range(1, sequences):
        backend.copy(0, slot)
    samplers = [backend.sampler(SamplingParams(), 0, None, tokens) for _ in range(sequences)]
    last, stopwatch = [tokens[0]] * sequences, Stopwatch(1)
    try:
        for step in range(steps + WARM_UP_STEPS):
            stopwatch = Stopwatch(model.threads(sequences > 1)) if step == WARM_UP_STEPS else stopwatch
            position = len(tokens) + step
            backend.decode([Row(slot, position, token, True) for slot, token in enumerate(last)])
            last = [sampler.sample(slot) for slot, sampler in enumerate(samplers)]
        return stopwatch.result(steps * sequences)
    finally:
        for sampler in samplers:
            sampler.close()


def time_steps(
    model: LoadedModel, tokens: tuple[int, ...], rows: Sequence[int], seconds: float
) -> list[tuple[int, float]]:
    """Shortest duration of a step with each number of rows at the end of the tokens, all with logits.

    Row counts take turns, in rounds, for about `seconds`; if time is short, only the most important are measured, at
    least two. Other programs lengthen a short step more than a long one, because its threads wait for each other more
    often: medians would make drafts look cheap. CerebrumError if the rows cannot be removed again.
    """
    prefix = len(tokens) - max(rows)
    model.prefill(tokens[:prefix])
    first = {count: index for index, count in enumerate(MEASURED_FIRST)}
    measured: dict[int, list[float]] = {}
    start = perf_counter()
    for turn in range(MAX_ROUNDS):
        if turn >= MIN_ROUNDS and perf_counter() > start + seconds:
            break
        for count in [*measured] or sorted(rows, key=lambda count: first.get(count, len(first))):
            step = [Row(0, index, tokens[index], True) for index in range(prefix, prefix + count)]
            measured.setdefault(count, []).extend(_repeat_step(model.backend, step))
            if turn == 0 and len(measured) > 1 and perf_counter() > start + seconds / MIN_ROUNDS:
                break
    return [(count, min(durations)) for count, durations in sorted(measured.items())]


def _repeat_step(backend: LlamaBackend, rows: Sequence[Row]) -> list[float]:
    """Seconds of a step that is repeated and undone; the first, which builds the graph, counts only if it is alone."""
    durations: list[float] = []
    while sum(durations) < MIN_VISIT_S:
        start = perf_counter()
        backend.decode(rows)
        backend.logits(len(rows) - 1)  # waits until a GPU is done
        durations.append(perf_counter() - start)
        if not backend.trim(0, rows[0].position):
            raise CerebrumError("its cache cannot be trimmed")
    return durations[WARM_UP_STEPS:] or durations


def teacher_forced_logits(model: LoadedModel, tokens: tuple[int, ...]) -> Iterator[NDArray[numpy.float32]]:
    """Yield the logits after each token but the last; each array is valid until the next one is requested."""
    backend, start = model.backend, 0
    while start < len(tokens) - 1:
        end = min(len(tokens) - 1, start + backend.prefill_chunk(start))
        backend.decode([Row(0, index, tokens[index], True) for index in range(start, end)])
        yield from (backend.logits(row) for row in range(end - start))
        start = end


def write(path: str, rows: Iterable[NDArray[numpy.float32]], count: int, width: int) -> None:
    """Write rows of logits to a file one by one, since they may not fit in memory together."""
    file = numpy.lib.format.open_memmap(path, "w+", numpy.float32, (count, width))  # type: ignore[no-untyped-call]
    for index, row in enumerate(rows):
        file[index] = row
    file.flush()


def closeness(reference: NDArray[numpy.float32], other: Iterable[NDArray[numpy.float32]]) -> Closeness:
    """Compare two evaluations of a text, given a row of logits per token."""
    same, similar, total = 0, 0, 0.0
    for row, against in zip(reference, other, strict=True):  # converted to double row by row
        p, q = log_softmax(row), log_softmax(against)
        choice = int(against.argmax())
        same += choice == int(row.argmax())
        similar += bool(p[choice] >= p.max() + numpy.log(SIMILAR))
        total += float((numpy.exp(p) * (p - q)).sum())
    count = len(reference)
    return Closeness(same / count, similar / count, total / count)


def log_softmax(row: NDArray[numpy.float32]) -> NDArray[numpy.float64]:
    """Convert logits to log probabilities."""
    shifted = row.astype("float64") - float(row.max())
    return shifted - float(numpy.log(numpy.exp(shifted).sum()))


def process_request(model: LoadedModel, request: dict[str, Any]) -> dict[str, Any]:
    """Time a job or steps for drafts, write logits, or compare with logits written before."""
    sequences = request["sequences"]
    model.configure(Tuning(**request["tuning"]), request["length"], sequences)
    if job := request.get("job"):
        if job["kind"] == "prefill":
            return time_prefill(model, model.tokens(request["text"], job["tokens"]))
        return time_decode(model, model.tokens(request["text"], PREFIX_TOKENS), job["tokens"], sequences)
    tokens = model.tokens(request["text"], request["tokens"])
    if rows := request.get("rows"):
        return {"step_s": time_steps(model, tokens, rows, request["seconds"])}
    logits = teacher_forced_logits(model, tokens)
    if path := request.get("write"):
        write(path, logits, request["tokens"] - 1, model.backend.size)
        return {}
    return {"closeness": closeness(numpy.load(request["compare"], mmap_mode="r"), logits)}


def error_text(error: CerebrumError) -> str:
    """Error message, with the first line of llama.cpp's log if there is one."""
    log = error.log[:1] if isinstance(error, EngineError) else ()
    return ": ".join((error.message, *log))


def main() -> None:
    """Process requests until the input ends."""
    model: LoadedModel | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if model is None:
                given = request["load"]
                sizes = ModelSizes.from_dict(given["sizes"])
                adapters = tuple(AdapterFile(*each) for each in given["adapters"])
                more = {"path": Path(given["path"]), "sizes": sizes, "adapters": adapters}
                model = LoadedModel(LoadOptions(**{**given, **more}))
                answer: dict[str, Any] = {
                    "load_s": model.load_s,
                    "devices": [asdict(device) for device in accelerators()],
                }
            else:
                answer = process_request(model, request)
            answer["peak_memory"] = peak_memory()
        except CerebrumError as error:
            answer = {"error": [error_text(error), error.hint]}
        except OSError as error:
            answer = {"error": [f"{error.filename or 'a temporary file'}: {error.strerror}", "free disk space"]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
