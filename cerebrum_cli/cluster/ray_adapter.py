"""The adapter to Ray, which runs in a child process: it handles signals, prints, and does not stop at once."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import cycle, islice
from math import inf
from multiprocessing.connection import Connection, Pipe
from threading import Event, Thread
from typing import Any, NamedTuple, NoReturn

from cerebrum_cli.core.environment import set_environment_default
from cerebrum_cli.core.errors import CerebrumError, EndpointError
from cerebrum_cli.core.text import one_line, pip_install, well_formed
from cerebrum_cli.core.version import __version__

CONNECT_S = 5.0
CLOSE_S = 5.0  # that the command waits for Ray to stop
STOP_S = 60  # after which Ray is killed
POLL_S = 0.2  # that a message is waited for
RESTART_S = 30.0  # before a worker that failed is replaced
ALIVE_S = 30.0  # after which an open worker counts as a sign of life: others may fail at every block
OBJECT_STORE_BYTES = 200 * 2**20  # of shared memory, for blocks that wait
MAX_REASON = 300  # characters
NEXT, END = "next", "end"  # messages to the command: send the next block; all are answered or lost
PROGRAM = f"from {__name__} import main; main()"

Records = Sequence[Mapping[str, str]]  # of what generates
Report = tuple[str, str, str, Records]  # the host of a worker, its problem with a hint, and its records
# Opens a model with a number of threads; yields notices as answers without rows, and returns what answers blocks.
Job = Callable[[int], Generator[bytes, None, tuple[Callable[[bytes], bytes], Records]]]
# The blocks for a number of workers, the job of each, and how many blocks it has at a time.
Plan = Callable[[int], tuple[Iterator[bytes], Job, int]]


class WorkerReport(NamedTuple):
    """A worker on a host is ready, or has a problem; `worker` is its id."""

    worker: str
    host: str
    problem: str
    hint: str
    records: Records


Message = bytes | WorkerReport | None


def answer_blocks(
    address: str | int, workers: int | None, uses_gpus: bool, plan: Plan
) -> Generator[Message, None, None]:
    """Yield answers to blocks as they are finished, reports of workers, b"" as their sign of life, and None otherwise.

    `address` is that of a cluster; a number starts a node on this machine, with that many workers unless `workers`
    names another number. Without either, there is one on each GPU, or on each node. Blocks whose worker or node is lost
    are left out. Raises EndpointError.
    """
    if not find_spec("ray"):
        raise EndpointError("ray is not installed", pip_install("'cerebrum-cli[ray]'"))
    pipe, child = Pipe()
    with child:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, str(child.fileno())],
            cwd="/",  # workers import from the driver's directory first
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[child.fileno()],
            start_new_session=True,  # Ctrl-C is for the command alone
        )
    try:
        pipe.send((address, workers, uses_gpus))
        while (message := receive_message(pipe)) != END:
            if isinstance(message, CerebrumError):
                raise message
            if isinstance(message, int):
                blocks, job, concurrency = plan(message)
                pipe.send((pickle.dumps(job), concurrency))
            elif message == NEXT:
                pipe.send(next(blocks, b""))
            else:
                yield message
    except (EOFError, ConnectionError) as error:
        raise EndpointError("Ray ended unexpectedly", "see its logs in /tmp/ray") from error
    finally:
        pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(CLOSE_S)


def receive_message(pipe: Connection) -> Any:
    """The next message, or None if there is none for a while. Raises EOFError."""
    try:
        return pipe.recv() if pipe.poll(POLL_S) else None
    except OSError as error:  # the end is within a message
        raise EOFError from error


# In the child process.


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    is_local, directory = False, ""
    with suppress(EOFError, OSError):  # the command has ended
        try:
            address, workers, uses_gpus = pipe.recv()
            is_local = isinstance(address, int)
            import_ray(is_local)
            if isinstance(address, int):
                with ending_with_command(pipe):
                    directory = start_node(address)
                workers = workers or address
            else:
                connect(address)
            places = find_places(workers or 0, uses_gpus)
            pipe.send(len(places))
            answer_in_places(pipe, places, *pipe.recv())
        except CerebrumError as error:
            pipe.send(error)
        finally:
            if is_local:
                stop_node(directory)
            signal.alarm(STOP_S)  # if Ray does not stop
            if ray := sys.modules.get("ray"):
                ray.shutdown()


def import_ray(is_local: bool) -> None:
    """Import Ray, which reads these variables then. Raises EndpointError if it cannot be imported."""
    set_environment_default("RAY_USAGE_STATS_ENABLED", "0")
    if is_local:  # a process of the node that ends does not come back
        set_environment_default("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    try:
        import ray  # noqa: F401
    except Exception as error:
        problem = f"ray cannot be imported: {reason_of(error)}"
        raise EndpointError(problem, pip_install("--force-reinstall 'cerebrum-cli[ray]'")) from error


@contextmanager
def ending_with_command(pipe: Connection) -> Iterator[None]:
    """End this process, and those of the node that it starts, if the command ends meanwhile: a start takes seconds."""
    is_started = Event()

    def watch() -> None:
        while not is_started.is_set():
            if pipe.poll(POLL_S):  # it is closed: the command sends nothing meanwhile
                kill_children()
                os._exit(1)

    watching = Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        is_started.set()
        watching.join()


def start_node(workers: int) -> str:
    """Start a node on this machine with room for this many workers; return its session directory.

    Raises EndpointError.
    """
    import ray

    from cerebrum_cli.engine.capacity import thread_count

    options = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False, "log_to_driver": False}
    omit_api_server()
    try:
        context = ray.init("local", num_cpus=max(thread_count(), workers), **options)
    except Exception as error:
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        problem = f"Ray cannot start: {place}{reason_of(error)}"
        raise EndpointError(problem, "correct that, or omit --ray to use this machine alone") from error
    return str(context.address_info["session_dir"])


def omit_api_server() -> None:
    """Let nodes that this process starts have no API server. Raises EndpointError for a Ray without this function.

    Without a dashboard, the server only reports usage. Even if that is disabled, it asks which cloud hosts the machine.
    """
    from ray._private import services

    if not hasattr(services, "start_api_server"):
        raise EndpointError("this version of Ray is not supported", pip_install("'ray<2.61'"))
    services.start_api_server = lambda *_, **__: ("", None)


def reason_of(error: Exception) -> str:
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return well_formed(one_line(reason))[:MAX_REASON]


def stop_node(directory: str) -> NoReturn:
    """Kill the processes of the node that this one started, then exit: Ray's own shutdown takes over a second."""
    kill_children()
    if directory:
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)


def kill_children() -> None:
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def connect(address: str) -> None:
    """Connect to a cluster. Raises EndpointError."""
    import ray

    try:
        from ray._private.services import canonicalize_bootstrap_address_or_die

        resolved = canonicalize_bootstrap_address_or_die(address)
        host, _, port = resolved.rpartition(":")
        socket.create_connection((host, int(port)), CONNECT_S).close()  # where nothing listens, Ray tries for minutes
        ray.init(resolved, log_to_driver=False)
    except Exception as error:
        problem = f"no Ray cluster at {address}: {reason_of(error)}"
        hint = "run ray start --head, or use --ray local; if Ray requires a token, set RAY_AUTH_MODE=token"
        raise EndpointError(problem, hint) from error


class Place(NamedTuple):
    """The node of a worker, the threads of its model, and the resource of which it takes one."""

    node: str
    threads: int
    resource: str


def find_places(workers: int, uses_gpus: bool) -> list[Place]:
    """Places on the nodes with GPUs, or on all if none has any; for 0, one on each free GPU or node."""
    import ray

    alive = (node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    resources_of = {node["NodeID"]: node["Resources"] for node in alive}
    with_gpus = {node: resources for node, resources in resources_of.items() if resources.get("GPU")}
    nodes = with_gpus or resources_of
    on_gpus = _free_gpus(with_gpus) if uses_gpus else []
    if uses_gpus and with_gpus and not on_gpus:
        raise EndpointError("no GPU of the Ray cluster is free", "wait for its other jobs: see ray status")
    chosen = on_gpus[: workers or None] or list(islice(cycle(nodes), workers or len(nodes)))
    if not chosen:
        raise EndpointError("no node of the Ray cluster has CPUs", "check the nodes with ray status")
    threads = {node: max(1, int(nodes[node]["CPU"]) // chosen.count(node)) for node in chosen}
    return [Place(node, threads[node], "num_gpus" if on_gpus else "num_cpus") for node in chosen]


def _free_gpus(nodes: Iterable[str]) -> list[str]:
    """The node of each free GPU, in an order that takes one of each node in turn."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    counts = {node: int(free.get(node, {}).get("GPU", 0)) for node in nodes}
    return [node for turn in range(max(counts.values(), default=0)) for node in counts if turn < counts[node]]


def answer_in_places(pipe: Connection, places: Sequence[Place], job: bytes, concurrency: int) -> None:
    """Send reports of workers, and answers to all blocks but lost ones. Raises EOFError once the command has ended."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[Worker.__module__])  # nodes may lack this package
    workers = [RemoteWorker(str(number), place, job, concurrency) for number, place in enumerate(places)]
    has_blocks = True
    while has_blocks or any(worker.has_opened and worker.tasks for worker in workers):
        while has_blocks and (free := [worker for worker in workers if worker.has_room]):
            pipe.send(NEXT)
            if block := pipe.recv():
                min(free, key=lambda worker: len(worker.tasks)).answer(block)
            else:
                has_blocks = False
        tasks = {task: worker for worker in workers for task in worker.tasks}
        ready, _ = ray.wait(list(tasks), timeout=POLL_S)
        for task in ready:
            if message := tasks[task].receive(task):
                pipe.send(message)
        if not ready and any(time.monotonic() - worker.opened_at > ALIVE_S for worker in workers):
            pipe.send(b"")
        if pipe.poll():  # it is closed
            pipe.recv()
    pipe.send(END)


class RemoteWorker:
    """A worker in its place, which is replaced if it is lost; its `tasks` are streams of answers and reports."""

    def __init__(self, id: str, place: Place, job: bytes, concurrency: int) -> None:
        self._id, self._place, self._job, self._concurrency = id, place, job, concurrency
        self._start()

    def _start(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = NodeAffinitySchedulingStrategy(self._place.node, soft=True)
        options = {self._place.resource: 1, "max_concurrency": self._concurrency, "scheduling_strategy": node}
        self._actor = ray.remote(Worker).options(**options).remote()
        self.has_opened, self.opened_at = False, inf  # since then without a problem
        self.tasks = [self._actor.open.remote(__version__, self._job, self._place.threads)]

    @property
    def has_room(self) -> bool:
        return self.opened_at < inf and len(self.tasks) < self._concurrency

    def answer(self, block: bytes) -> None:
        self.tasks.append(self._actor.answer.remote(block))

    def receive(self, task: Any) -> Message:
        """The next answer or report of a task; None at its end, or if the worker or its node is lost."""
        import ray

        try:
            message: bytes | Report = ray.get(next(task))
        except StopIteration:
            self.tasks.remove(task)
            return None
        except ray.exceptions.RayError:
            self._start()  # an earlier one that is out of reach ends with its last handle
            return None
        if isinstance(message, bytes):
            return message
        report = WorkerReport(self._id, *message)
        self.has_opened = self.has_opened or not report.problem
        self.opened_at = inf if report.problem else time.monotonic()
        return report


# In processes of the cluster. They get what follows by value: a node may lack this package.


class Worker:
    """Answers blocks with a model; one that cannot be opened is reported, gets no blocks, and is replaced later."""

    def open(self, version: str, job: bytes, threads: int) -> Iterator[bytes | Report]:
        """Yield notices, then a report."""
        try:
            import cerebrum_cli

            if cerebrum_cli.__version__ != version:
                raise RuntimeError(f"it has version {cerebrum_cli.__version__} of cerebrum, not {version}")
            self._answer, records = yield from pickle.loads(job)(threads)
            yield socket.gethostname(), "", "", records
        except Exception as error:
            yield from end_with(error)

    def answer(self, block: bytes) -> Iterator[bytes | Report]:
        try:
            yield self._answer(block)
        except Exception as error:  # of the whole model: a new worker replaces this one
            yield from end_with(error)


def end_with(error: Exception) -> Iterator[Report]:
    """Report why this worker ends, and end it later: the problem may be gone when another replaces it."""
    hint = getattr(error, "hint", "see its Ray logs in /tmp/ray")
    yield socket.gethostname(), str(error) or type(error).__name__, hint, ()
    time.sleep(RESTART_S)
    os._exit(1)
