"""The process that tries one way of opening a model: questions on standard input, answers on standard output, in JSON.

It ends with its input. This is the only thread that decodes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy

from cerebrum_cli.core.errors import CerebrumError, EngineError
from cerebrum_cli.core.parts import Text
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.backend import Row, StopFlag
from cerebrum_cli.engine.bench.protocol import Closeness
from cerebrum_cli.engine.llama.backend import LlamaBackend
from cerebrum_cli.engine.llama.devices import accelerators
from cerebrum_cli.engine.llama.load import context_options, open_llama
from cerebrum_cli.engine.machine import peak_memory
from cerebrum_cli.engine.plan import LoadOptions, Shape, Tuning

if TYPE_CHECKING:
    from numpy.typing import NDArray

BEGINNING = 16  # tokens that are read before any is said
NEARLY = 0.95  # of the probability of the likeliest token
FEW = 1  # steps that are not timed: llama.cpp plans anew in the first


class Opened:
    """A model, and the contexts that are made of it one after another."""

    def __init__(self, options: LoadOptions) -> None:
        start = perf_counter()
        self.options = options
        self.backend: LlamaBackend = open_llama(options, lambda _: None, StopFlag())
        self.load_s = perf_counter() - start
        self._arranged: tuple[Any, ...] = ()
        self._tokens: dict[str, tuple[int, ...]] = {}

    def arrange(self, tuning: Tuning, length: int, sequences: int) -> None:
        """Make a context for so many sequences of a length; as it was last, it is only emptied."""
        wanted = (tuning, length, sequences)
        if wanted == self._arranged:
            for slot in range(self.backend.slots):
                self.backend.clear(slot)
            return
        self._arranged = ()
        options = self.options.with_tuning(Tuning(**{**tuning.overrides, "slots": sequences}))
        offloads = bool(accelerators()) and options.gpu_layers != "0"
        many = sequences > 1
        self._context = context_options(options, length, True, offloads)
        self.backend.configure(self._context, many and not offloads)
        self.backend.reserve(length)
        if self.backend.slots < sequences:
            raise CerebrumError(f"memory holds {self.backend.slots} sequences, and not {sequences}")
        self._arranged = wanted

    def threads(self, many: bool) -> int:
        """Return how many threads evaluate one row, or many."""
        options = self._context
        return (many and options.n_threads_batch) or options.n_threads

    def tokens(self, text: str, count: int) -> tuple[int, ...]:
        """Return so many tokens of a text, from its beginning again where it is shorter."""
        if text not in self._tokens:
            self._tokens[text] = self.backend.tokenize([Text(text, trusted=False)])
        tokens = self._tokens[text]
        return (tokens * (1 + count // len(tokens)))[:count]

    def read(self, tokens: tuple[int, ...]) -> None:
        """Evaluate a prompt in slot 0, with logits for its last token."""
        at, backend = 0, self.backend
        while at < len(tokens):
            until = min(len(tokens), at + backend.prefill_chunk(at))
            backend.decode([Row(0, index, tokens[index], index == len(tokens) - 1) for index in range(at, until)])
            at = until


class Watch:
    """A clock, and how much of a number of processors this process has had since it began."""

    def __init__(self, processors: int) -> None:
        self._processors = processors
        self._wall, self._used = perf_counter(), process_time()

    def told(self, tokens: int) -> dict[str, float]:
        """Return tokens a second, and the share of its processors that this process has had."""
        seconds = perf_counter() - self._wall
        return {"speed": tokens / seconds, "share": (process_time() - self._used) / seconds / self._processors}


def reading(opened: Opened, tokens: tuple[int, ...]) -> dict[str, float]:
    """Read a prompt and tell how fast that was; the first steps of a context are not timed."""
    opened.read(tokens[:BEGINNING])
    opened.backend.clear(0)
    watch = Watch(opened.threads(many=True))
    opened.read(tokens)
    return watch.told(len(tokens))


def saying(opened: Opened, tokens: tuple[int, ...], steps: int, sequences: int) -> dict[str, float]:
    """Say tokens, behind the same beginning in all sequences, and tell how fast they were together."""
    backend = opened.backend
    opened.read(tokens)
    for slot in range(1, sequences):
        backend.copy(0, slot)
    samplers = [backend.sampler(SamplingParams(), 0, None, tokens) for _ in range(sequences)]
    said, watch = [tokens[0]] * sequences, Watch(1)
    try:
        for step in range(steps + FEW):
            watch = Watch(opened.threads(many=sequences > 1)) if step == FEW else watch
            position = len(tokens) + step
            backend.decode([Row(slot, position, token, True) for slot, token in enumerate(said)])
            said = [sampler.sample(slot) for slot, sampler in enumerate(samplers)]
        return watch.told(steps * sequences)
    finally:
        for sampler in samplers:
            sampler.close()


def forced(opened: Opened, tokens: tuple[int, ...]) -> Iterator[NDArray[numpy.float32]]:
    """Yield the logits after each token of a text but the last; the next ones may overwrite them."""
    backend, at = opened.backend, 0
    while at < len(tokens) - 1:
        until = min(len(tokens) - 1, at + backend.prefill_chunk(at))
        backend.decode([Row(0, index, tokens[index], True) for index in range(at, until)])
        yield from (backend.logits(row) for row in range(until - at))
        at = until


def write(path: str, rows: Iterable[NDArray[numpy.float32]], count: int, width: int) -> None:
    """Write rows of logits to a file, one after the other: all together they may not fit into memory."""
    file = numpy.lib.format.open_memmap(path, "w+", numpy.float32, (count, width))  # type: ignore[no-untyped-call]
    for index, row in enumerate(rows):
        file[index] = row
    file.flush()


def closeness(reference: NDArray[numpy.float32], other: Iterable[NDArray[numpy.float32]]) -> Closeness:
    """Compare two evaluations of a text, a row of logits for each of its tokens."""
    same, near, total = 0, 0, 0.0
    for row, against in zip(reference, other, strict=True):  # in doubles, and a vocabulary at a time
        p, q = log_softmax(row), log_softmax(against)
        choice = int(against.argmax())
        same += choice == int(row.argmax())
        near += bool(p[choice] >= p.max() + numpy.log(NEARLY))
        total += float((numpy.exp(p) * (p - q)).sum())
    count = len(reference)
    return Closeness(same / count, near / count, total / count)


def log_softmax(row: NDArray[numpy.float32]) -> NDArray[numpy.float64]:
    """Return logits as logarithms of probabilities."""
    shifted = row.astype("float64") - float(row.max())
    return shifted - float(numpy.log(numpy.exp(shifted).sum()))


def answer(opened: Opened, question: dict[str, Any]) -> dict[str, Any]:
    """Return what a question asks for."""
    sequences = question["sequences"]
    opened.arrange(Tuning(**question["tuning"]), question["length"], sequences)
    if do := question.get("do"):
        if do["kind"] == "read":
            return reading(opened, opened.tokens(question["text"], do["tokens"]))
        return saying(opened, opened.tokens(question["text"], BEGINNING), do["tokens"], sequences)
    logits = forced(opened, opened.tokens(question["text"], question["tokens"]))
    if path := question.get("write"):
        write(path, logits, question["tokens"] - 1, opened.backend.size)
        return {}
    return {"closeness": closeness(numpy.load(question["compare"], mmap_mode="r"), logits)}


def reasoned(error: CerebrumError) -> str:
    """Return what is wrong, with the first of what llama.cpp said of it."""
    said = error.log[:1] if isinstance(error, EngineError) else ()
    return ": ".join((error.message, *said))


def main() -> None:
    """Answer until there are no more questions."""
    opened: Opened | None = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if opened is None:
                given = question["open"]
                shape = Shape(**given.pop("shape"))
                opened = Opened(LoadOptions(**{**given, "path": Path(given["path"]), "shape": shape}))
                told: dict[str, Any] = {
                    "load_s": opened.load_s,
                    "devices": [asdict(device) for device in accelerators()],
                }
            else:
                told = answer(opened, question)
            told["peak"] = peak_memory()
        except CerebrumError as error:
            told = {"error": [reasoned(error), error.hint]}
        except OSError as error:
            told = {"error": [f"{error.filename or 'a temporary file'}: {error.strerror}", "free some space"]}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
