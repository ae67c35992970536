"""A Ray cluster on this machine, as a program: a node with another version of this program, and a good one."""

import contextlib
import shutil
import sys
from pathlib import Path

from cerebrum_cli.cluster.ray_adapter import omit_api_server

CPUS = 2  # of each node, for two runs at a time
STORE_BYTES = 100 * 2**20


def main() -> None:
    """Start the nodes, and write the address; stop at the end of standard input."""
    from ray.cluster_utils import Cluster

    omit_api_server()
    other = Path(sys.argv[1]) / "other" / "cerebrum_cli"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("__version__ = '99'\n")
    cluster = Cluster()
    with contextlib.redirect_stdout(sys.stderr):
        for more in ({"env_vars": {"PYTHONPATH": str(other.parent)}}, {}):
            cluster.add_node(num_cpus=CPUS, object_store_memory=STORE_BYTES, include_dashboard=False, **more)
        session = cluster.head_node.get_session_dir_path()
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()
    shutil.rmtree(session)


if __name__ == "__main__":
    main()
