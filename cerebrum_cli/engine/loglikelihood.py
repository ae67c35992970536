"""Log-probabilities of given texts: requests, results, and jobs, which evaluate the texts a step at a time.

The texts form a trie, of which each node is evaluated once: its leaves are evaluated in lexicographic order, and steps
are filled with the next nodes, of as many leaves as there are slots. A row is evaluated for all leaves that share it.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from math import inf
from typing import NamedTuple

from cerebrum_cli.core.errors import CerebrumError, EngineError, PromptTooLong, UsageError
from cerebrum_cli.core.events import RefusedEvent, SequenceId, StageEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.token_ids import Tokens, common_prefix
from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.step import TokenRow


@frozen
class ScoreRequest:
    """Continuations of one context to score; an empty one has the score 0, whatever its context."""

    context: Tokens
    continuations: tuple[Tokens, ...]


class Score(NamedTuple):
    """Log-probability of a continuation after its context, summed over `tokens`.

    It `is_greedy` if each of the tokens is the most likely one at its place.
    """

    logprob_sum: float
    is_greedy: bool
    tokens: int


@frozen
class LogprobScores:
    """The index of a finished request, and a score for each of its continuations, in order."""

    request: int
    scores: tuple[Score, ...]


ScoringEvent = LogprobScores | RefusedEvent | StageEvent


def refusal(request: ScoreRequest, context_size: int) -> CerebrumError | None:
    """Why a request cannot be scored, if it cannot. The last token of a continuation is not evaluated."""
    longest = max(map(len, request.continuations), default=0)
    length = len(request.context) + longest
    if longest and not request.context:
        return UsageError("the context of a text to score is empty", "start it with the model's BOS token")
    if longest and length - 1 > context_size:
        return PromptTooLong(
            f"the text to score has {length} tokens, but the context has {context_size}", "shorten it, or raise --ctx"
        )
    return None


@dataclass(slots=True, eq=False)
class TriePath:
    """A leaf of the trie: the tokens from the root to it; it shares the first `shared` with the path before.

    `lookups` are the probabilities to read at its other nodes, as flat triples of integers: position of the row, next
    token, number of the continuation. An array takes a tenth of the memory of objects. An open path has those that are
    left by position; its slot holds its first `evaluated` tokens.
    """

    tokens: array[int]
    shared: int
    lookups: array[int] = field(default_factory=lambda: array("i"))
    slot: int = 0
    evaluated: int = 0
    by_position: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def open(self, slot: int, evaluated: int) -> None:
        self.slot, self.evaluated = slot, evaluated
        for at in range(0, len(self.lookups), 3):
            position, token, number = self.lookups[at : at + 3]
            self.by_position.setdefault(position, []).append((token, number))

    @property
    def is_finished(self) -> bool:
        return self.evaluated == len(self.tokens)


def build_paths(continuations: Sequence[tuple[Tokens, Tokens]]) -> list[TriePath]:
    """Build the trie of continuations, each given with its context, without the last token of each.

    The paths depend on the set of continuations alone, not on their order. Contexts may not be empty; nothing is
    evaluated for an empty continuation.
    """
    texts = sorted(
        (array("i", [*context, *continuation[:-1]]), number)
        for number, (context, continuation) in enumerate(continuations)
        if continuation
    )
    paths: list[TriePath] = []
    owners: list[int] = []  # by position in the current text: the first path that has the node
    for text, number in texts:
        shared = common_prefix(paths[-1].tokens, text) if paths else 0
        if paths and shared == len(paths[-1].tokens):
            paths[-1].tokens = text  # which extends it
        else:
            paths.append(TriePath(text, shared))
            del owners[shared:]
        owners += [len(paths) - 1] * (len(text) - len(owners))
        context, continuation = continuations[number]
        for position, token in enumerate(continuation, len(context) - 1):
            paths[owners[position]].lookups.extend((position, token, number))
    return paths


@dataclass(slots=True, eq=False)
class Pending:
    """A request whose continuations have `left` tokens to score."""

    index: int
    scores: list[Score]
    left: int


StepRow = tuple[TokenRow, list[TriePath]]  # and the open paths that the row is evaluated for


class ScoreJob:
    """Requests to score in a context of this size, and where their events go: the last is None or an error.

    The open paths, one in each slot, are the first that is not finished and those after it.
    """

    def __init__(
        self,
        requests: Iterable[ScoreRequest],
        context_size: int,
        emit: Callable[[ScoringEvent | BaseException | None], None],
    ) -> None:
        self.emit = emit
        self._places = []  # request and index of each continuation
        texts = []
        for index, request in enumerate(requests):
            if error := refusal(request, context_size):
                emit(RefusedEvent(SequenceId(index), error))
            else:
                scores = [Score(0.0, True, len(text)) for text in request.continuations]
                pending = Pending(index, scores, sum(map(len, request.continuations)))
                texts += [(request.context, text) for text in request.continuations]
                self._places += [(pending, place) for place in range(len(scores))]
                self._report_if_done(pending)
        self._paths = build_paths(texts)
        self._opened = 0  # number of paths that are open or finished
        self._open: deque[TriePath] = deque()
        self._free_slots: list[int] = []
        self._backend: Backend | None = None  # once memory is reserved

    def step(self, backend: Backend) -> bool:
        """Execute the next step; False, and the job ends, if none is left.

        All slots are overwritten, and empty after the job.
        """
        if self._backend is None and self._paths:
            self._reserve(backend)
        step = self._plan_step(backend) if self._paths else []
        if not step:
            self.end()
        elif backend.decode([row for row, _ in step]):
            self._process_output(backend, step)
        else:  # it was interrupted, and may have written any part of its rows: evaluate the open paths again
            backend.context.clear_all()
            for path in self._open:
                path.evaluated = 0
        return bool(step)

    def end(self) -> None:
        if self._backend:
            for slot in range(self._backend.slots):
                self._backend.context.clear(slot)
        self.emit(None)

    def _reserve(self, backend: Backend) -> None:
        """Allocate memory for the longest text; a shared cache gets its full size, which attention depends on.

        It is empty then, which makes scores independent of what was in it. Separate caches share no rows: one is used.
        """
        slots = None if backend.shares_rows else 1
        length = backend.context_size if backend.kv_unified else max(len(path.tokens) for path in self._paths)
        if length > backend.capacity:
            backend.reserve(length, slots)
        backend.context.clear_all()
        self._backend = backend
        self._free_slots = list(range(slots or backend.slots))

    def _open_paths(self, backend: Backend) -> None:
        """Open further paths in free slots; the slot of a finished path before is taken over with its tokens."""
        while len(self._open) > 1 and self._open[0].is_finished:
            path = self._open.popleft()
            backend.context.clear(path.slot)
            self._free_slots.append(path.slot)
        for path in islice(self._paths, self._opened, None):
            before = self._open[-1] if self._open else None
            if before and before.is_finished:
                self._free_slots.append(self._open.pop().slot)
            if not self._free_slots:
                return
            slot = self._free_slots.pop()
            path.open(slot, self._share(backend, path, slot, before))
            self._open.append(path)
            self._opened += 1

    def _share(self, backend: Backend, path: TriePath, slot: int, before: TriePath | None) -> int:
        """Fill a slot with what a path has in common with the one before, as far as that is evaluated: how many tokens.

        Memory that cannot be trimmed has all of it or nothing.
        """
        context = backend.context
        held = before.evaluated if before else 0
        length = min(held, path.shared)
        if length < held and held > backend.trimmable_length:
            length = 0
        if before is None or not length:
            context.clear(slot)
            return 0
        if slot != before.slot:
            context.copy(before.slot, slot)
        if length < held and not context.trim(slot, length):
            raise EngineError(f"the state of the model cannot be rewound to token {length} of a text")
        return length

    def _plan_step(self, backend: Backend) -> list[StepRow]:
        """Plan the next rows: of the open paths in order, each from where it leaves those before.

        If the last open path cannot be rewound to where the next one leaves it, the step ends there.
        """
        self._open_paths(backend)
        step: list[StepRow] = []
        room = min(backend.batch_size, backend.capacity - self._open[0].evaluated)
        outputs = backend.max_outputs
        least = inf  # position from which the last open path must be copied before it goes on
        if self._opened < len(self._paths):
            least = max(self._paths[self._opened].shared, backend.trimmable_length)
        for row, paths in self._next_rows():
            needs_copy = row.position >= least and paths[-1] is self._open[-1]
            if len(step) == room or (row.output and not outputs) or (needs_copy and step):
                break
            if row.output:
                outputs -= 1
            step.append((row, paths))
        return step

    def _next_rows(self) -> Iterator[StepRow]:
        """All rows of the open paths that are left, and the paths that share each."""
        ends = {path.slot: path.evaluated for path in self._open}
        for number, path in enumerate(self._open):
            for position in range(ends[path.slot], len(path.tokens)):
                paths = self._sharing(number, position)
                slots = [sharing.slot for sharing in paths]
                ends.update(dict.fromkeys(slots, position + 1))
                is_output = position in path.by_position
                yield TokenRow(path.slot, position, path.tokens[position], is_output, tuple(slots[1:])), paths

    def _sharing(self, number: int, position: int) -> list[TriePath]:
        """The open path with this number, and those after it that a row at this position is evaluated for too."""
        path = self._open[number]
        after = islice(self._open, number + 1, None)
        sharing = takewhile(lambda other: other.shared > position, after)
        return [path, *(other for other in sharing if other.evaluated == path.evaluated)]

    def _process_output(self, backend: Backend, step: Sequence[StepRow]) -> None:
        lookups = []  # row, token, and number of the continuation
        for index, (row, paths) in enumerate(step):
            if row.output:
                lookups += [(index, token, number) for token, number in paths[0].by_position.pop(row.position)]
            for path in paths:
                path.evaluated = row.position + 1
        scores = backend.score_tokens([(index, token) for index, token, _ in lookups])
        for (_, _, number), score in zip(lookups, scores, strict=True):
            pending, place = self._places[number]
            total, is_greedy, tokens = pending.scores[place]
            pending.scores[place] = Score(total + score.logprob, is_greedy and score.is_argmax, tokens)
            pending.left -= 1
            self._report_if_done(pending)
        self.emit(StageEvent("scoring"))

    def _report_if_done(self, pending: Pending) -> None:
        if not pending.left:
            self.emit(LogprobScores(pending.index, tuple(pending.scores)))
