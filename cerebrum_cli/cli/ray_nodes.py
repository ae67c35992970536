"""`--ray`: blocks of rows are answered on the nodes of a Ray cluster, by the same code as here.

`Distribution` cuts the missing rows into blocks, and writes their answers. A `NodeJob` opens the model on a node.
Blocks that are lost with their worker are answered in another pass.
"""

from __future__ import annotations

import pickle
import platform
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cerebrum_cli.batch.answering import BatchOptions, answer_rows
from cerebrum_cli.batch.journal import Journal
from cerebrum_cli.batch.rows import INPUT
from cerebrum_cli.cli.endpoints import note_records, noted_servers
from cerebrum_cli.cli.generation import open_for, slots_of
from cerebrum_cli.cli.ray_cluster import OpenedNode, Place, RayCluster, WorkerReport
from cerebrum_cli.core.errors import EndpointError, ModelFileError, ModelNotFound, NoServerError, UsageError
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
from cerebrum_cli.eval.evaluate import Evaluation, SampleWriter, evaluate
from cerebrum_cli.eval.marking import Match, code_marker, marker
from cerebrum_cli.inference.loading import ModelUse, ReplySource, Servers

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.options import BatchCommandOptions, EvalOptions
    from cerebrum_cli.eval.marking import Marker
    from cerebrum_cli.inference.responder import Responder
    from cerebrum_cli.models.library import Library
    from cerebrum_cli.models.model import Model
    from cerebrum_cli.terminal.sinks import Sink

ADDRESS = re.compile(r"[^\s/:]+:\d{1,5}")
LOCAL = re.compile(r"local(?::([1-9]\d?))?")
BLOCK, SHORT_BLOCK, BLOCK_TOKENS = 64, 256, 65_536  # rows at most, and if each is short: what is lost with a worker
BLOCKS_EACH = 4  # blocks for each worker at least, so that all end at about the same time
SERVER_SAMPLES = 1024  # that a server of a node is given at a time, without --parallel
PATIENCE_S = 600.0
MAX_FRUITLESS = 3  # attempts at blocks none of which is answered
SHOWN_ROWS = 5

Block = Mapping[int, Any]
"""Rows of a batch by position; of an evaluation, positions of samples."""


def answer_on_nodes(
    app: App,
    source: ReplySource,
    work: BatchWork | EvalWork,
    options: BatchCommandOptions | EvalOptions,
    sinks: Sequence[Sink],
) -> None:
    """Answer the missing rows of some work on the cluster that the options name. Raises UsageError, EndpointError."""
    from cerebrum_cli.terminal.sinks import render

    model, servers = source.model, source.host if isinstance(source.host, Servers) else None
    file = NodeFile(app.library.hashed_identity(model), model.size, model.path, model.reference)
    slots = (servers.window or SERVER_SAMPLES) if servers else slots_of(source)
    servers = servers and replace(servers, earlier=noted_servers(work.run))
    job = NodeJob(file, source.settings, source.use, servers, not options.no_profile, 0, work.answer_block)
    with closing(open_cluster(options.ray or "")) as cluster:
        patience = PATIENCE_S if options.patience is None else options.patience
        distribution = Distribution(cluster, job, work, slots, options.ray_workers, patience)
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
    """Answers the rows of some work on a cluster, `slots` samples at a time on each node; `cancel` ends it soon."""

    cluster: RayCluster
    job: NodeJob
    work: BatchWork | EvalWork
    slots: int
    workers: int | None = None
    patience: float = PATIENCE_S  # without any worker
    is_cancelled: bool = False
    _reports: dict[str, WorkerReport] = field(default_factory=dict)
    _notices: set[NoticeEvent] = field(default_factory=set)
    _tokens: dict[str, int] = field(default_factory=dict)

    def cancel(self) -> None:
        self.is_cancelled = True

    def events(self) -> Generator[Event, None, None]:
        """Answer the missing rows, and again those of lost workers; yield notices and progress."""
        yield StageEvent("starting the nodes", 0, 1)
        run, fruitless = self.work.run, 0
        while (missing := self._missing) and not self.is_cancelled:
            places = self.cluster.places(self.workers, uses_gpus=self.job.servers is None)
            most = max(BLOCK, min(SHORT_BLOCK, BLOCK_TOKENS // (self.job.settings.max_tokens or BLOCK_TOKENS)))
            size = 1 if fruitless else min(most, -(-missing // (BLOCKS_EACH * len(places))))
            yield from self._answer(places, missing, size)
            fruitless = fruitless + 1 if self._missing == missing else 0
            if fruitless == MAX_FRUITLESS and not self.is_cancelled:
                lost = (at for at in range(len(run.rows)) if at not in run.finished)
                names = ", ".join(str(run.rows.identity(at)[0]) for at in islice(lost, SHOWN_ROWS))
                more = f" and {missing - SHOWN_ROWS} more" if missing > SHOWN_ROWS else ""
                problem = f"the workers failed {fruitless} times on rows {names}{more}"
                raise EndpointError(problem, "see the Ray logs of the nodes in /tmp/ray")

    @property
    def _missing(self) -> int:
        return len(self.work.run.rows) - len(self.work.run.finished)

    def _answer(self, places: Sequence[Place], missing: int, size: int) -> Iterator[Event]:
        """Answer the missing rows once, in blocks of a size."""
        finished, samples = self.work.run.finished, self.work.samples
        flags = bytes(position in finished for position in range(len(self.work.run.rows)))
        each = -(-missing // len(places))
        concurrency = min(self.slots // (size * samples) + 2, max(2, -(-each // size)))
        blocks, job = partial(read_blocks, self.work.rows, flags, size), replace(self.job, samples=each * samples)
        self._reports, idle_since = {}, time.monotonic()
        with closing(self.cluster.answer(blocks, job, places, concurrency)) as answers:
            for answer in answers:
                if self.is_cancelled:
                    return
                if isinstance(answer, WorkerReport):
                    yield from self._take_report(answer, len(places))
                elif answer:
                    yield from self._write(answer)
                if any(not report.problem for report in self._reports.values()):
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > self.patience:
                    hint = "see ray status, then run the same command again"
                    raise NoServerError("no worker has started on any node", hint)

    def _take_report(self, report: WorkerReport, workers: int) -> Iterator[Event]:
        self._reports[report.worker] = report
        if report.problem:
            if len(self._reports) >= workers and all(each.problem for each in self._reports.values()):
                raise EndpointError(f"no worker could start ({report.host}: {report.problem})", report.hint)
            yield from self._notify([NoticeEvent(f"{report.host} is not used: {report.problem}", report.hint)])
            return
        note_records(self.work.run, report.records)
        yield PromptEvent(SequenceId(0), 0, 1)
        yield self.work.progress

    def _write(self, answer: bytes) -> Iterator[Event]:
        host, objects, tokens, notices = pickle.loads(answer)
        for position, object in objects.items():
            if position not in self.work.run.finished:
                self.work.write(position, object)
        self._tokens[host] = self._tokens.get(host, 0) + tokens
        yield from self._notify(notices)
        yield ServersEvent(tuple(ServerTokens(host, tokens, False) for host, tokens in self._tokens.items()))
        yield self.work.progress

    def _notify(self, notices: Iterable[NoticeEvent]) -> Iterator[Event]:
        new = dict.fromkeys(notice for notice in notices if notice not in self._notices)
        self._notices.update(new)
        yield from new


def read_blocks(rows: Any, finished: bytes, size: int) -> Iterator[bytes]:
    """Yield blocks of the rows without a flag that they are finished."""
    missing = (position for position, is_finished in enumerate(finished) if not is_finished)
    while block := {position: rows[position] for position in islice(missing, size)}:
        yield pickle.dumps(block)


@dataclass(frozen=True, slots=True)
class BatchWork:
    """The rows of a batch."""

    rows: Any
    run: Journal
    options: BatchOptions

    @property
    def samples(self) -> int:
        return self.options.votes.maximum if self.options.votes else 1

    @property
    def answer_block(self) -> AnswerBlock:
        return partial(answer_block, self.options)

    @property
    def progress(self) -> Event:
        return RowEvent(len(self.run.finished), len(self.run.rows), self.run.counts)

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        self.run.write(position, object)


class EvalWork(SampleWriter):
    """The samples of an evaluation, which are marked on the nodes."""

    samples = 1

    def __init__(self, evaluation: Evaluation, match: Match, run: Journal) -> None:
        super().__init__(evaluation, run)
        self.run = run
        self.rows = range(len(evaluation.rows))
        self.answer_block = partial(take_block, replace(evaluation, marker=cast("Marker", None)), match)


# On a node.


@dataclass(slots=True)
class BlockResult:
    """The result of a block, in memory: its objects by position."""

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


AnswerBlock = Callable[["Responder", Block, BlockResult], Iterator[Event]]
"""Answers a block, and yields all events."""


def answer_block(options: BatchOptions, responder: Responder, block: Block, result: BlockResult) -> Iterator[Event]:
    return answer_rows(responder, block, options, result, in_order=False, positions=tuple(block))


def take_block(
    evaluation: Evaluation, match: Match, responder: Responder, block: Block, result: BlockResult
) -> Iterator[Event]:
    marks = code_marker(True) if match == "code" else marker(match, evaluation.questions)
    result.finished = set(range(len(evaluation.rows))) - block.keys()
    return evaluate(responder, replace(evaluation, marker=marks), result)


class NodeFile(NamedTuple):
    """What nodes open, at the same path as here or in their own caches; `identity` are the digests of its files.

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

    def __call__(self, threads: int) -> OpenedNode:
        """Load the model, or connect to the node's server. Raises CerebrumError."""
        from cerebrum_cli.cli.app import real_app
        from cerebrum_cli.engine.machine import processor_name, thread_count

        app, settings = real_app(), self.settings
        if settings.threads is None and threads < thread_count():
            settings = replace(settings, threads=threads)
        model, resources = find_file(app.library, self.file), app.resources(not self.is_tuned)
        loaded = open_for(ReplySource(resources, model, settings, self.use, self.servers), self.samples)
        notices = [event for event in loaded.responder.load() if isinstance(event, NoticeEvent)]
        answer = partial(answer_rows_of, loaded.responder, self.answer_block, notices)
        if loaded.is_remote:
            return OpenedNode(answer, loaded.engine.builds)
        build = app.build()
        processor = ", ".join((processor_name(), *(device.description for device in build.devices)))
        llama = f"{build.version} ({' '.join(build.cpu_features)})"
        return OpenedNode(answer, [{"kind": "ray", "build": llama, "processor": processor}])


def answer_rows_of(
    responder: Responder, answer_block: AnswerBlock, notices: Sequence[NoticeEvent], block: bytes
) -> bytes:
    """Answer a block: the host, its objects by position, the tokens that were generated for them, and notices."""
    result, host, tokens, notices = BlockResult(), platform.node(), 0, list(notices)
    for event in answer_block(responder, pickle.loads(block), result):
        if isinstance(event, FinishEvent):
            tokens += event.completion_tokens
        elif isinstance(event, NoticeEvent):
            notices.append(event)
    objects = {position: with_server(object, host) for position, object in result.rows.items()}
    return pickle.dumps((host, objects, tokens, notices))


def with_server(object: Mapping[str, Any], host: str) -> dict[str, Any]:
    """An object with the node as its server, before the name of the node's own server; the row's input comes last."""
    more = {key: object[key] for key in ("served_model", INPUT) if key in object}
    server = " ".join(filter(None, (host, object.get("server"))))
    return {**{key: value for key, value in object.items() if key not in more}, "server": server, **more}


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
