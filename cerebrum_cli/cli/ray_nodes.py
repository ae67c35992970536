"""`--ray`: blocks of rows are answered on the nodes of a Ray cluster, by the same code as here."""

from __future__ import annotations

import pickle
import platform
import re
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.batch.answering import BatchOptions, answer_rows
from cerebrum_cli.batch.readers import IndexedRows
from cerebrum_cli.batch.result import Result
from cerebrum_cli.batch.rows import INPUT
from cerebrum_cli.cli.endpoints import noted_servers
from cerebrum_cli.cli.generation import AUTO_PARALLEL, open_for
from cerebrum_cli.cli.ray_cluster import Pass, Place, RayCluster, Source, WorkerReport
from cerebrum_cli.core.errors import (
    BatchError,
    EndpointError,
    ModelFileError,
    ModelNotFound,
    NoServerError,
    UsageError,
)
from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    NoticeEvent,
    PromptEvent,
    RowCounts,
    RowEvent,
    SequenceId,
    ServersEvent,
    ServerTokens,
    StageEvent,
)
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.eval.evaluate import Evaluation, evaluate
from cerebrum_cli.eval.marking import Match, code_marker, marker
from cerebrum_cli.eval.questions import Question, parse_sample
from cerebrum_cli.eval.report import RunningScore
from cerebrum_cli.inference.loading import LoadedModel, ModelUse, ReplySource, Servers

if TYPE_CHECKING:
    from cerebrum_cli.batch.journal import Journal
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.options import BatchCommandOptions, EvalOptions
    from cerebrum_cli.inference.responder import Responder
    from cerebrum_cli.models.library import Library
    from cerebrum_cli.models.model import Model
    from cerebrum_cli.terminal.sinks import Sink

ADDRESS = re.compile(r"[^\s/:]+:\d{1,5}")
LOCAL = re.compile(r"local(?::([1-9]\d?))?")
BLOCK = 64  # rows at most: what is lost with a worker
BLOCKS_EACH = 4  # blocks for each worker at least, so that all end at about the same time
SERVER_SAMPLES = 1024  # that a server of a node is given at a time, without --parallel
PATIENCE_S = 600.0
MAX_FRUITLESS = 3  # attempts at blocks none of which is answered

QuestionBlock = Sequence[tuple[int, Question, Sequence[int]]]
"""Questions by position, each with its finished samples."""


def answer_on_nodes(
    app: App,
    source: ReplySource,
    work: BatchWork | EvalWork,
    run: Journal | None,
    options: BatchCommandOptions | EvalOptions,
    sinks: Sequence[Sink],
) -> None:
    """Answer the missing rows of some work on the cluster that the options name. Raises UsageError, EndpointError."""
    from cerebrum_cli.terminal.sinks import render

    model = source.model
    file = NodeFile(app.library.hashed_identity(model), model.size, model.path, model.reference)
    servers = source.host if isinstance(source.host, Servers) else None
    if servers and run:
        servers = replace(servers, earlier=noted_servers(run))
    job = NodeJob(file, source.settings, source.use, servers, not options.no_profile, work.samples, work.answer_block)
    with closing(open_cluster(options.ray or "")) as cluster:
        distribution = Distribution(cluster, job, work, options.ray_workers, run, options.patience or PATIENCE_S)
        render(distribution.events(), distribution.cancel, sinks)


def open_cluster(text: str) -> RayCluster:
    """The cluster that `--ray` names. Raises UsageError, EndpointError."""
    if local := LOCAL.fullmatch(text):
        return RayCluster(int(local[1] or 1))
    if text == "auto" or ADDRESS.fullmatch(text):
        return RayCluster(text)
    raise UsageError(f"--ray is {text!r}", "it must be auto, local, local:N or HOST:PORT")


@dataclass(slots=True)
class Distribution:
    """Answers the rows of some work on a cluster; after `cancel` it ends soon."""

    cluster: RayCluster
    job: NodeJob
    work: BatchWork | EvalWork
    workers: int | None = None
    run: Journal | None = None
    patience: float = PATIENCE_S  # without any worker
    is_cancelled: bool = False
    _reports: dict[str, WorkerReport] = field(default_factory=dict)
    _notices: set[NoticeEvent] = field(default_factory=set)
    _tokens: dict[str, int] = field(default_factory=dict)
    _idle_since: float = 0.0

    def cancel(self) -> None:
        self.is_cancelled = True

    def events(self) -> Generator[Event, None, None]:
        """Answer the missing rows, and again those of lost workers; yield notices and progress."""
        yield StageEvent("starting the nodes", 0, 1)
        fruitless = 0
        while (missing := self.work.missing) and not self.is_cancelled:
            places = self.cluster.places(self.workers, uses_gpus=self.job.servers is None)
            yield from self._answer(places, 1 if fruitless else min(BLOCK, -(-missing // (BLOCKS_EACH * len(places)))))
            fruitless = fruitless + 1 if self.work.missing == missing else 0
            if fruitless == MAX_FRUITLESS and not self.is_cancelled:
                raise EndpointError(f"{missing} rows were lost {fruitless} times with their workers", "see Ray's logs")

    def _answer(self, places: Sequence[Place], size: int) -> Iterator[Event]:
        """Answer the missing rows once, in blocks of a size."""
        slots = self.job.use.context.slots or (SERVER_SAMPLES if self.job.servers else AUTO_PARALLEL)
        concurrency = slots // (size * self.work.samples) + 2
        job = replace(self.job, samples=-(-self.work.missing // len(places)) * self.work.samples)
        self._reports, self._idle_since = {}, time.monotonic()
        with closing(self.cluster.answer(Pass(self.work.blocks(size), job, places, concurrency))) as answers:
            for answer in answers:
                if self.is_cancelled:
                    return
                if isinstance(answer, WorkerReport):
                    yield from self._take_report(answer, len(places))
                elif answer:
                    yield from self._write(answer)
                else:
                    self._require_worker()

    def _take_report(self, report: WorkerReport, workers: int) -> Iterator[Event]:
        self._reports[report.worker] = report
        if report.problem:
            if len(self._reports) >= workers and all(each.problem for each in self._reports.values()):
                raise EndpointError(f"no node can generate ({report.host}: {report.problem})", report.hint)
            yield from self._notify([NoticeEvent(f"{report.host} is not used: {report.problem}", report.hint)])
            return
        known = noted_servers(self.run) if self.run else ()
        if self.run and (new := [record for record in report.records if record not in known]):
            with suppress(BatchError):  # of a full disk: what went wrong before it matters more
                self.run.write_notes({**self.run.notes, "servers": [*known, *new]})
        yield PromptEvent(SequenceId(0), 0, 1)
        yield self.work.progress

    def _write(self, answer: bytes) -> Iterator[Event]:
        host, rows, tokens, notices = pickle.loads(answer)
        for position, object in rows:
            self.work.write(position, object)
        self._tokens[host] = self._tokens.get(host, 0) + tokens
        yield from self._notify(notices)
        yield ServersEvent(tuple(ServerTokens(host, tokens, False) for host, tokens in self._tokens.items()))
        yield self.work.progress

    def _notify(self, notices: Iterable[NoticeEvent]) -> Iterator[Event]:
        new = dict.fromkeys(notice for notice in notices if notice not in self._notices)
        self._notices.update(new)
        yield from new

    def _require_worker(self) -> None:
        """Raise EndpointError if no worker has been ready for too long."""
        if any(not report.problem for report in self._reports.values()):
            self._idle_since = time.monotonic()
        if time.monotonic() - self._idle_since > self.patience:
            raise NoServerError("no worker has started on any node", "see ray status, then run the same command again")


@dataclass(slots=True)
class BatchWork:
    """The rows of a batch, of which the result lacks some."""

    rows: IndexedRows
    result: Result
    options: BatchOptions

    @property
    def samples(self) -> int:
        return self.options.votes.maximum if self.options.votes else 1

    @property
    def answer_block(self) -> AnswerBlock:
        return partial(answer_block, self.options)

    @property
    def missing(self) -> int:
        return len(self.rows) - len(self.result.finished)

    @property
    def progress(self) -> Event:
        return RowEvent(len(self.result.finished), len(self.rows), self.result.counts)

    def blocks(self, size: int) -> Source:
        finished = bytes(position in self.result.finished for position in range(len(self.rows)))
        return partial(read_blocks, self.rows, zlib.compress(finished, 1), size)

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        if position not in self.result.finished:
            self.result.write(position, object)


def read_blocks(rows: IndexedRows, finished: bytes, size: int) -> Iterator[bytes]:
    """Yield blocks of rows that are not `finished`, compressed flags; here the rows are read from the input again."""
    missing = (position for position, is_finished in enumerate(zlib.decompress(finished)) if not is_finished)
    while block := {position: rows[position] for position in islice(missing, size)}:
        yield pickle.dumps(block)


@dataclass(slots=True)
class EvalWork:
    """The questions of an evaluation, of which a run lacks samples; `match` is how they are marked."""

    evaluation: Evaluation
    match: Match
    run: Journal
    _score: RunningScore = field(init=False)

    def __post_init__(self) -> None:
        self._score = RunningScore(len(self.evaluation.questions), self.samples)
        for object in self.run.objects():
            self._score.add(parse_sample(object))

    @property
    def samples(self) -> int:
        return self.evaluation.samples

    @property
    def answer_block(self) -> AnswerBlock:
        whole = self.evaluation
        return partial(take_block, self.samples, whole.settings, whole.model, self.match, whole.grammar)

    @property
    def missing(self) -> int:
        return len(self._missing)

    @property
    def progress(self) -> Event:
        return self._score.event

    def blocks(self, size: int) -> Source:
        missing = self._missing
        blocks = [pickle.dumps(missing[at : at + size]) for at in range(0, len(missing), size)]
        return partial(iter, blocks)

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        if position not in self.run.finished:
            self.run.write(position, object)
            self._score.add(parse_sample(object))

    @property
    def _missing(self) -> QuestionBlock:
        samples, finished = range(self.samples), self.run.finished
        found = (
            (at, question, [sample for sample in samples if at * len(samples) + sample in finished])
            for at, question in enumerate(self.evaluation.questions)
        )
        return [each for each in found if len(each[-1]) < len(samples)]


# On a node.


@dataclass(slots=True)
class BlockResult:
    """The result of a block, in memory: its rows by position."""

    finished: set[int] = field(default_factory=set)
    rows: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    counts: RowCounts = field(default_factory=RowCounts)

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        self.finished.add(position)
        self.rows[position] = object

    def objects(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def complete(self) -> None:
        """Do nothing."""

    close = complete


AnswerBlock = Callable[["Responder", Any, BlockResult], Iterator[Event]]
"""Answers a block of rows or questions, and yields all events."""


def answer_block(
    options: BatchOptions, responder: Responder, block: Mapping[int, Any], result: BlockResult
) -> Iterator[Event]:
    return answer_rows(responder, block, options, result, in_order=False, positions=tuple(block))


def take_block(
    samples: int,
    settings: Settings,
    model: str,
    match: Match,
    grammar: str | None,
    responder: Responder,
    block: QuestionBlock,
    result: BlockResult,
) -> Iterator[Event]:
    questions = tuple(question for _, question, _ in block)
    marks = code_marker(True) if match == "code" else marker(match, questions)
    result.finished.update(at * samples + sample for at, (_, _, finished) in enumerate(block) for sample in finished)
    yield from evaluate(responder, Evaluation(questions, samples, settings, model, marks, grammar), result)
    result.rows = {block[at // samples][0] * samples + at % samples: object for at, object in result.rows.items()}


@dataclass(frozen=True, slots=True)
class NodeFile:
    """What nodes open, at the same path as here or in their own caches: the digests and the size of its files.

    `reference` is for messages.
    """

    identity: str
    size: int
    path: Path
    reference: str


@dataclass(frozen=True, slots=True)
class NodeJob:
    """How nodes open the model, each for up to so many samples, and how they answer a block."""

    file: NodeFile
    settings: Settings
    use: ModelUse
    servers: Servers | None
    is_tuned: bool
    samples: int
    answer_block: AnswerBlock

    def open(self, threads: int) -> NodeModel:
        """Load the model, or connect to the node's server. Raises CerebrumError."""
        from cerebrum_cli.cli.app import real_app
        from cerebrum_cli.engine.machine import processor_name, thread_count

        app, settings = real_app(), self.settings
        if settings.threads is None and threads < thread_count():
            settings = replace(settings, threads=threads)
        model, resources = find_file(app.library, self.file), app.resources(not self.is_tuned)
        loaded = open_for(ReplySource(resources, model, settings, self.use, self.servers), self.samples)
        notices = [event for event in loaded.responder.load() if isinstance(event, NoticeEvent)]
        if loaded.is_remote:
            return NodeModel(loaded, self.answer_block, notices, loaded.engine.builds)
        build = app.build()
        processor = ", ".join((processor_name(), *(device.description for device in build.devices)))
        llama = f"{build.version} ({' '.join(build.cpu_features)})"
        record = {"kind": "ray", "build": llama, "processor": processor}
        return NodeModel(loaded, self.answer_block, notices, [record])


@dataclass(frozen=True, slots=True)
class NodeModel:
    """A model that a node has opened."""

    loaded: LoadedModel
    answer_block: AnswerBlock
    notices: Sequence[NoticeEvent]
    records: Sequence[Mapping[str, str]]

    def answer(self, block: bytes) -> bytes:
        """Answer a block: the host, its rows by position, the tokens that were generated for them, and notices."""
        result, host, tokens, notices = BlockResult(), platform.node(), 0, list(self.notices)
        for event in self.answer_block(self.loaded.responder, pickle.loads(block), result):
            if isinstance(event, FinishEvent):
                tokens += event.completion_tokens
            elif isinstance(event, NoticeEvent):
                notices.append(event)
        rows = [(position, with_server(object, host)) for position, object in result.rows.items()]
        return pickle.dumps((host, rows, tokens, notices))


def with_server(object: Mapping[str, Any], host: str) -> dict[str, Any]:
    """An object with the node as its server; the row's input comes last."""
    named = {**object, "server": host}
    if INPUT in named:
        named[INPUT] = named.pop(INPUT)
    return named


def find_file(library: Library, file: NodeFile) -> Model:
    with suppress(ModelNotFound, ModelFileError):
        model = library.model_at(file.path)
        if model.size == file.size and library.hashed_identity(model) == file.identity:
            return model
    for model in (*library.models(), *library.vocabularies()):
        if model.is_readable and library.file_identity(model) == file.identity:
            return model
    problem = f"{file.reference} is not installed on this node: no file has its SHA-256, {file.identity[:12]}..."
    raise ModelNotFound(problem, f"cerebrum pull {file.reference} there, or use a path that all nodes share")
