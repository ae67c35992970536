"""The adapter to Ray: workers on the nodes of a cluster answer blocks of rows, which Ray Data passes on.

Ray runs in a child process, since it handles signals, prints, and does not stop at once; this module is its program.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, Pipe
from typing import Any, NamedTuple

from cerebrum_cli import __version__
from cerebrum_cli.core.environment import environment, set_environment_default
from cerebrum_cli.core.errors import CerebrumError, EndpointError
from cerebrum_cli.core.text import one_line, pip_install, well_formed

CONNECT_S = 5.0
CLOSE_S = 15.0
POLL_S = 0.2  # between questions after reports of workers
RESTART_S = 30.0  # before a worker that failed is started again
OBJECT_STORE_BYTES = 200 * 2**20  # of shared memory, for blocks that wait
MAX_REASON = 300  # characters
END = "end"  # of the answers
PROGRAM = f"from {__name__} import main; main()"

Source = Callable[[], Iterator[bytes]]
"""Yields blocks of rows, always the same ones."""


class OpenedNode(NamedTuple):
    """What answers blocks on a node, on several threads; `records` identify what generates."""

    answer: Callable[[bytes], bytes]
    records: Sequence[Mapping[str, str]]


Job = Callable[[int], OpenedNode]
"""Opens a model on a node, with so many threads; its class is in a module that nodes can import."""


class Place(NamedTuple):
    """A node for one worker, how many processors it may use, and how many GPUs."""

    node: str
    threads: int
    gpus: int


class WorkerReport(NamedTuple):
    """A worker on a host is ready, or has a problem; `worker` is its id."""

    worker: str
    host: str
    problem: str = ""
    hint: str = ""
    records: Sequence[Mapping[str, str]] = ()


class Pass(NamedTuple):
    """Answers all blocks that are read at an address, with a pickled job, in each place some of them at a time."""

    address: Any
    key: bytes
    job: bytes
    places: Sequence[Place]
    concurrency: int


class BlockServer:
    """Sends the blocks of `source` to each process on this machine that knows the key; `error` is what ended that."""

    def __init__(self) -> None:
        self.source: Source = lambda: iter(())
        self.key = os.urandom(32)
        self.error: Exception | None = None
        self._listener = Listener(("127.0.0.1", 0), authkey=self.key)
        self.address = self._listener.address
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError, AuthenticationError), self._listener.accept() as reader:
                try:
                    for block in self.source():
                        reader.send_bytes(block)
                    reader.send_bytes(b"")
                except CerebrumError as error:
                    self.error = error


class RayCluster:
    """A Ray cluster at an address, or of so many nodes on this machine, which are started for it.

    Raises EndpointError if Ray is not installed.
    """

    def __init__(self, address: str | int) -> None:
        if find_spec("ray") is None:
            hint = pip_install("'cerebrum-cli[ray]'")
            raise EndpointError("--ray needs the package ray, which is not installed", hint)
        self._blocks = BlockServer()
        self._pipe, child = Pipe()
        with child:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(child.fileno()), str(address)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[child.fileno()],
                start_new_session=True,  # Ctrl-C is for the command alone
            )

    def places(self, workers: int | None, uses_gpus: bool) -> list[Place]:
        """Places for a number of workers, or for one on each GPU, or on each node. Raises EndpointError."""
        self._pipe.send((workers, uses_gpus))
        found: list[Place] = self._receive()
        return found

    def answer(
        self, source: Source, job: Job, places: Sequence[Place], concurrency: int
    ) -> Generator[bytes | WorkerReport | None, None, None]:
        """Yield answers to blocks as they are finished, reports of workers, and None now and then.

        Blocks whose worker or node is lost are left out. Raises EndpointError, and errors of the source.
        """
        self._blocks.source = source
        self._pipe.send(Pass(self._blocks.address, self._blocks.key, pickle.dumps(job), places, concurrency))
        while True:
            is_waiting = self._pipe.poll(POLL_S)
            if self._blocks.error:
                raise self._blocks.error
            message = self._receive() if is_waiting else None
            if message == END:
                return
            yield message

    def _receive(self) -> Any:
        try:
            message = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise EndpointError("Ray has ended unexpectedly", "see its logs in /tmp/ray") from error
        if isinstance(message, CerebrumError):
            raise message
        return message

    def close(self) -> None:
        """Stop the workers, and disconnect."""
        self._pipe.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


# In the child process.


def main() -> None:
    set_environment_default("RAY_USAGE_STATS_ENABLED", "0")
    pipe, address = Connection(int(sys.argv[1])), sys.argv[2]
    try:
        with start_nodes(int(address)) if address.isdecimal() else contextlib.nullcontext(address) as address:
            connect(address)
            while True:
                request = pipe.recv()
                if isinstance(request, Pass):
                    answer_blocks(request, pipe)
                    pipe.send(END)
                else:
                    pipe.send(find_places(*request))
    except CerebrumError as error:
        pipe.send(error)
    except (EOFError, OSError, KeyboardInterrupt):  # the command has ended
        pass


@contextlib.contextmanager
def start_nodes(count: int) -> Iterator[str]:
    """Start nodes, which share this machine's processors; yield their address. They leave no files."""
    import ray
    from ray.cluster_utils import Cluster

    from cerebrum_cli.engine.machine import thread_count

    cluster, processors = Cluster(), max(1, thread_count() // count)
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=processors, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
        yield cluster.address
    finally:
        session = cluster.head_node.get_session_dir_path() if cluster.head_node else ""
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(session, ignore_errors=True)


def connect(address: str) -> None:
    """Connect to a cluster. Raises EndpointError."""
    import ray

    hint = "start one with ray start --head, or use --ray local"
    try:
        if address == "auto":
            address = environment("RAY_ADDRESS") or ray._private.utils.read_ray_address() or ""
            if not address:
                raise EndpointError("no Ray cluster is running on this machine", hint)
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), CONNECT_S).close()  # where nothing listens, Ray tries for minutes
        ray.init(address, log_to_driver=False)
    except EndpointError:
        raise
    except Exception as error:
        reason = well_formed(one_line(str((isinstance(error, OSError) and error.strerror) or error)))[:MAX_REASON]
        if "ersion mismatch" in reason:
            hint = "use the same versions of Ray and Python everywhere"
        elif "uthenticat" in reason or "AUTH" in reason:
            hint = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH"
        raise EndpointError(f"no Ray cluster at {address}: {reason}", hint) from error


def find_places(workers: int | None, uses_gpus: bool) -> list[Place]:
    """Places for a number of workers, or for one on each GPU; in a cluster without, or else, one on each node.

    Nodes without GPUs, such as a head, are left out where others have some.
    """
    import ray

    nodes = {
        node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
    }
    with_gpus = {node: resources for node, resources in nodes.items() if resources.get("GPU")}
    nodes = with_gpus or nodes
    counts = {node: int(resources.get("GPU", 1)) if uses_gpus else 1 for node, resources in nodes.items()}
    turns = [node for turn in range(max(counts.values(), default=0)) for node in nodes if turn < counts[node]]
    if workers and turns:
        most = len(turns) if with_gpus and uses_gpus else workers
        turns = [node for node, _ in zip(cycle(turns), range(min(workers, most)), strict=False)]
    gpus = 1 if with_gpus and uses_gpus else 0
    return [Place(node, max(1, int(nodes[node]["CPU"]) // turns.count(node)), gpus) for node in turns]


def answer_blocks(work: Pass, pipe: Connection) -> None:
    """Send the answers to all blocks, and the reports of workers meanwhile, until nobody reads them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.cloudpickle.register_pickle_by_value(sys.modules[Worker.__module__])  # nodes may lack this package
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote()
    lock, is_over = threading.Lock(), threading.Event()

    def pass_on_reports() -> None:
        while not is_over.wait(POLL_S):
            if pipe.poll():  # the command has closed its end
                os.kill(os.getpid(), signal.SIGINT)
                return
            for report in ray.get(ledger.take.remote()):
                with lock:
                    pipe.send(WorkerReport(*report))

    reporter = threading.Thread(target=pass_on_reports)
    reporter.start()
    try:
        for table in pipeline(work, here, ledger).iter_batches(
            batch_size=None, prefetch_batches=0, batch_format="pyarrow"
        ):
            for answer in table["block"].to_pylist():
                with lock:
                    pipe.send(answer)
    finally:
        is_over.set()
        reporter.join()


def pipeline(work: Pass, here: Any, ledger: Any) -> Any:
    """A data set that answers the blocks of a source as it is read."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # one block of rows in each of Ray's
    context.max_errored_blocks = context.max_consecutive_actor_init_deaths = -1
    threads = {place.node: place.threads for place in work.places}
    turns, count, concurrency = cycle(work.places), len(work.places), work.concurrency
    start = ray.data.from_items([0], override_num_blocks=1)
    blocks = start.map_batches(
        read_blocks, fn_args=(work.address, work.key), batch_format="pyarrow", num_cpus=0, scheduling_strategy=here
    )
    return blocks.map_batches(
        Worker,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=(__version__, work.job, threads, ledger),
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=count, initial_size=count, max_tasks_in_flight_per_actor=concurrency
        ),
        ray_remote_args_fn=lambda: {"scheduling_strategy": NodeAffinitySchedulingStrategy(next(turns).node, soft=True)},
        **({"num_gpus": 1} if work.places[0].gpus else {"num_cpus": 1}),
        max_concurrency=concurrency,
        max_restarts=-1,
        max_task_retries=0,  # Ray would wait for the same worker, also where its node has no successor
    )


# In processes of the cluster. They get these classes by value, and import this package only where that is reported.


class Ledger:
    """Collects the reports of workers until the head takes them."""

    def __init__(self) -> None:
        self._reports: list[tuple[Any, ...]] = []

    def add(self, *report: Any) -> None:
        self._reports.append(report)

    def take(self) -> list[tuple[Any, ...]]:
        reports, self._reports = self._reports, []
        return reports


def read_blocks(_: Any, address: Any, key: bytes) -> Iterator[Any]:
    """Yield the blocks that the command sends, as tables of one."""
    import pyarrow

    with Client(address, authkey=key) as server:
        while block := server.recv_bytes():
            yield pyarrow.table({"block": pyarrow.array([block], pyarrow.large_binary())})


class Worker:
    """Answers blocks with a model; one that cannot be opened is reported, and gets no blocks."""

    def __init__(self, version: str, job: bytes, threads: Mapping[str, int], ledger: Any) -> None:
        import ray

        context = ray.get_runtime_context()
        self._id, self._host, self._ledger = context.get_actor_id(), socket.gethostname(), ledger
        try:
            self._node = open_node(version, job, threads.get(context.get_node_id(), 1))
        except Exception as error:
            self._report(error)
            threading.Event().wait()
        ledger.add.remote(self._id, self._host, "", "", self._node.records)

    def __call__(self, batch: Any) -> Any:
        try:
            answers = [self._node.answer(block) for block in batch["block"].to_pylist()]
        except Exception as error:  # of the whole model: Ray starts another worker, and the blocks are answered later
            self._report(error)
            time.sleep(RESTART_S)
            os._exit(1)
        return batch.from_pydict({"block": answers}, schema=batch.schema)

    def _report(self, error: Exception) -> None:
        problem = str(error) or type(error).__name__
        self._ledger.add.remote(self._id, self._host, problem, getattr(error, "hint", "see its Ray logs in /tmp/ray"))


def open_node(version: str, job: bytes, threads: int) -> OpenedNode:
    try:
        import cerebrum_cli
    except ImportError:
        raise RuntimeError("cerebrum is not installed") from None
    if cerebrum_cli.__version__ != version:
        raise RuntimeError(f"it has version {cerebrum_cli.__version__} of cerebrum, not {version}")
    opened: OpenedNode = pickle.loads(job)(threads)
    return opened
