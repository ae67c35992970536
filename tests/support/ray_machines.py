"""A Ray cluster on this machine, as a program: a head without CPUs, and two nodes; a third lacks this version."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

CPUS = 2  # of each node, for two runs at a time
STORE_BYTES = 100 * 2**20


def main() -> None:
    """Start the nodes, write the address, and stop them at the end of standard input."""
    from ray.cluster_utils import Cluster

    other = Path(sys.argv[1]) / "other" / "cerebrum_cli"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("__version__ = '99'\n")
    cluster = Cluster()
    with contextlib.redirect_stdout(sys.stderr):
        start_nodes(cluster, str(other.parent))
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


def start_nodes(cluster: Any, directory: str) -> None:
    for cpus, path in ((0, ""), (CPUS, ""), (CPUS, ""), (CPUS, directory)):
        more = {"env_vars": {"PYTHONPATH": path}} if path else {}
        cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES, include_dashboard=False, **more)


if __name__ == "__main__":
    main()
