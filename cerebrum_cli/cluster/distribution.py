"""Answers blocks of rows on the nodes of a Ray cluster; another pass answers those that were lost with a worker."""

from __future__ import annotations

import pickle
import platform
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event
from time import monotonic
from typing import cast

from cerebrum_cli.cluster.ray_adapter import Message, Plan, Records, WorkerReport, answer_blocks
from cerebrum_cli.core import events
from cerebrum_cli.core.errors import EndpointError, ModelFileError, ModelNotFound, NoServerError, UsageError
from cerebrum_cli.core.events import Events, NoticeEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import in_directory
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library
from cerebrum_cli.replies.interface import Model, open_source
from cerebrum_cli.replies.source import Installation, ModelSource
from cerebrum_cli.rows.answering import Asker, RowAnswer, askable_rows
from cerebrum_cli.rows.output_tables import INPUT
from cerebrum_cli.rows.run import SERVERS, Run

ADDRESS = re.compile(r"auto|[^\s/:]+:\d{1,5}")
LOCAL = re.compile(r"local(?::([1-9]\d?))?")
BLOCK, SHORT_BLOCK, BLOCK_TOKENS = 64, 256, 65_536  # rows at most, and if each is short: what is lost with a worker
BLOCKS_EACH = 4  # blocks for each worker at least, so that all end at about the same time
SERVER_SAMPLES = 1024  # that a server of a node is given at a time, without --parallel
MAX_FRUITLESS = 3  # attempts at blocks none of which is answered
START_S = 120.0  # in which Ray and a worker start
PATIENCE_S = START_S + 600.0  # without a worker


def distribute(source: ModelSource, asker: Asker, run: Run, address: str, workers: int | None) -> Distribution:
    """Answer the missing rows of a run on a Ray cluster. Raises UsageError."""
    model = source.model
    slots = source.slots
    servers = source.servers
    if servers:
        slots = servers.window or SERVER_SAMPLES
        servers = replace(servers, earlier=run.servers)
    identity = source.installation.library.identity(model, is_hashed=True)
    settings = source.settings
    paths = {"lora": settings.lora, "format": settings.format}
    # Nodes have installations and working directories of their own, and find the model there.
    portable = replace(
        source,
        installation=cast("Installation", None),
        model=cast("InstalledModel", None),
        settings=replace(settings, **in_directory(paths, Path.cwd())),
        servers=servers,
    )
    job = NodeJob(identity, model.path, model.reference, portable, asker)
    cluster = partial(answer_blocks, parse_cluster(address), workers, not servers)
    return Distribution(cluster, job, run, slots // asker.samples)


def parse_cluster(text: str) -> str | int:
    """The address that `--ray` names, or the number of workers on a node to start. Raises UsageError."""
    if local := LOCAL.fullmatch(text):
        return int(local[1] or 0)
    if ADDRESS.fullmatch(text):
        return text
    raise UsageError.invalid("--ray", text, "auto, local, local:N or HOST:PORT")


@dataclass(slots=True)
class Distribution:
    """Answers the missing rows of a run on a cluster, `slots` rows at a time on each node, until it is `cancelled`."""

    cluster: Callable[[Plan], Generator[Message, None, None]]
    job: NodeJob
    run: Run
    slots: int
    patience: float = PATIENCE_S
    cancelled: Event = field(default_factory=Event)
    _workers: int = 0
    _fruitless: int = 0  # passes in which no row was answered
    _reports: dict[str, WorkerReport] = field(default_factory=dict)
    _notices: set[NoticeEvent] = field(default_factory=set)
    _tokens: int = 0

    def answer(self) -> Events:
        yield events.StageEvent("starting the nodes")
        run = self.run
        while (missing := run.missing_count) and not self.cancelled.is_set():
            if self._fruitless == MAX_FRUITLESS:
                first = run.finished.flags.index(0) + 1
                problem = f"workers fail on {missing} rows, beginning with row {first}"
                raise EndpointError(problem, "see the Ray logs of the nodes in /tmp/ray")
            yield from self._answer_once()
            self._fruitless = self._fruitless + 1 if missing == run.missing_count else 0

    def _answer_once(self) -> Events:
        self._reports = {}
        alive_at = monotonic()
        with closing(self.cluster(self._plan)) as messages:
            for message in messages:
                if self.cancelled.is_set():
                    return
                if isinstance(message, bytes) or (message and message.worker not in self._reports):
                    alive_at = monotonic()
                elif monotonic() - alive_at > self.patience:
                    raise NoServerError("no worker is running on any node", "check the nodes with ray status")
                if message:
                    yield from self._take(message)

    def _plan(self, workers: int) -> tuple[Iterator[bytes], NodeJob, int]:
        """The blocks of missing rows for some workers, the job of each, and how many blocks it has at a time."""
        self._workers = workers
        rows_each = -(-self.run.missing_count // workers)
        most = max(BLOCK, min(SHORT_BLOCK, BLOCK_TOKENS // (self.job.source.settings.max_tokens or BLOCK_TOKENS)))
        size = min(most, -(-rows_each // BLOCKS_EACH))
        concurrency = min(self.slots // size + 2, max(2, -(-rows_each // size)))
        missing = askable_rows(self.run, self.job.asker)
        if self._fruitless:  # one row may have ended each worker: find others
            missing, size, concurrency = islice(missing, BLOCKS_EACH * workers), 1, 2
        blocks = iter(lambda: list(islice(missing, size)), [])
        return map(pickle.dumps, blocks), self.job, concurrency

    def _take(self, message: bytes | WorkerReport) -> Events:
        taken = self._take_report(message) if isinstance(message, WorkerReport) else self._write(message)
        for event in taken:
            if event not in self._notices:
                yield event
            if isinstance(event, NoticeEvent):
                self._notices.add(event)
        yield self.run.progress

    def _take_report(self, report: WorkerReport) -> Events:
        self._reports[report.worker] = report
        if report.problem:
            problems = [report_so_far.problem for report_so_far in self._reports.values()]
            if all(problems) and len(problems) >= self._workers:
                raise EndpointError(f"no worker could start ({report.host}: {report.problem})", report.hint)
            yield NoticeEvent(f"{report.host} is not used: {report.problem}", report.hint)
            return
        self._require_one_model()
        self.run.note(SERVERS, report.records)
        yield events.PromptEvent(events.SequenceId(0), 0, 1)

    def _require_one_model(self) -> None:
        models = {record.get("model"): ready.host for ready in self._reports.values() for record in ready.records}
        if len(models) > 1:
            (model, host), (other, there), *_ = models.items()
            problem = f"the servers differ: {there} has {other}, {host} has {model}"
            raise EndpointError(problem, "use servers with the same model")

    def _write(self, answer: bytes) -> Events:
        objects, tokens, notices = pickle.loads(answer)
        for place, object in objects.items():
            if self.run.position_of(place) not in self.run.finished:
                self.run.write(place, object)
        self._tokens += tokens
        yield from notices
        yield events.ServersEvent(self._tokens)


# On a node.


@frozen
class NodeJob:
    """How nodes open a model, and answer blocks."""

    identity: str  # digests of the model
    path: Path  # of the model here; nodes may have it in their own caches
    reference: str  # its name
    source: ModelSource  # to which a node adds its own installation and file
    asker: Asker

    def __call__(self, threads: int) -> Generator[bytes, None, tuple[Callable[[bytes], bytes], Records]]:
        """Load the model, or connect to the node's server; yield notices meanwhile. Raises CerebrumError."""
        from cerebrum_cli.engine.capacity import installed_build, thread_count

        installation = Installation.of_user()
        settings = self.source.settings
        if settings.threads is None and threads < thread_count():
            settings = replace(settings, threads=threads)
        model = find_file(installation.library, self)
        source = replace(self.source, installation=installation, model=model, settings=settings)
        loaded = open_source(source.for_rows())
        for event in loaded.load():
            if isinstance(event, NoticeEvent):
                yield pickle.dumps(({}, 0, [event]))
        answer = partial(self.answer, loaded)
        if loaded.is_remote:
            return answer, loaded.engine.builds
        library = installed_build()
        llama = f"{library.version} ({' '.join(library.cpu_features)})"
        return answer, [{"kind": "ray", "build": llama, "processor": library.hardware}]

    def answer(self, model: Model, block: bytes) -> bytes:
        """The objects of a block of rows by their places, the number of tokens, and notices."""
        objects, tokens, notices = dict[int, JsonDict](), 0, list[NoticeEvent]()
        for event in self.asker.answer(model, pickle.loads(block), in_order=False):
            if isinstance(event, RowAnswer):
                objects[event.place] = {**event.object, "server": platform.node()}
            elif isinstance(event, events.FinishEvent):
                tokens += event.completion_tokens
            elif isinstance(event, NoticeEvent):
                notices.append(event)
        for object in objects.values():
            if INPUT in object:  # it is the last key
                object[INPUT] = object.pop(INPUT)
        return pickle.dumps((objects, tokens, notices))


def find_file(library: Library, file: NodeJob) -> InstalledModel:
    with suppress(ModelNotFound, ModelFileError):
        model = library.model_at(file.path)
        if library.identity(model, is_hashed=True) == file.identity:
            return model
    for model in library.models():
        if model.is_usable and library.identity(model) == file.identity:
            return model
    problem = f"{file.reference} is not installed on this node: no file has the SHA-256 {file.identity[:12]}..."
    raise ModelNotFound(problem, f"run cerebrum pull {file.reference} there, or use a path that all nodes share")
