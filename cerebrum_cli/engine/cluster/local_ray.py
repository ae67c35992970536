"""A Ray cluster on this machine for one command: a child process that lasts as long as its standard input is open.

Ray takes over the handler of SIGTERM where it starts a node, and does so on a main thread only.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.settings import set_environment_default

OBJECT_STORE_BYTES = 150 * 2**20  # of shared memory, which requests and replies hardly use


class LocalRay:
    """A cluster of so many nodes, which share this machine's processors."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._child: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start the nodes; return their address. Raises EndpointError."""
        command = [sys.executable, "-m", __spec__.name, str(self._nodes)]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the command alone
        )
        assert self._child.stdout
        address = self._child.stdout.readline().strip()
        if not address:
            raise EndpointError("Ray cannot be started on this machine", "to see why, run ray start --head")
        return address

    def close(self) -> None:
        """Stop the nodes."""
        if self._child:
            self._child.communicate()


def main() -> None:
    """Start nodes, print their address, and stop them at the end of standard input."""
    set_environment_default("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    from cerebrum_cli.engine.machine import thread_count

    nodes = int(sys.argv[1])
    processors = max(1, thread_count() // nodes)
    cluster = Cluster()
    with contextlib.redirect_stdout(sys.stderr):
        for _ in range(nodes):
            cluster.add_node(num_cpus=processors, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
