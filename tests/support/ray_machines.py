"""A Ray cluster on this machine, as a program: a node with another version of this program, and two good ones."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

CPUS = 2  # of each node, for two runs at a time
STORE_BYTES = 100 * 2**20


def main() -> None:
    """Start the bad node, and write the address; start the others at a line; stop at the end of standard input."""
    from ray.cluster_utils import Cluster

    other = Path(sys.argv[1]) / "other" / "cerebrum_cli"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("__version__ = '99'\n")
    cluster = Cluster()
    add_node(cluster, env_vars={"PYTHONPATH": str(other.parent)})
    write_line(cluster.address)
    sys.stdin.readline()
    for _ in range(2):
        add_node(cluster)
    write_line("ready")
    sys.stdin.read()
    cluster.shutdown()


def add_node(cluster: Any, **options: Any) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        cluster.add_node(num_cpus=CPUS, object_store_memory=STORE_BYTES, include_dashboard=False, **options)


def write_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
