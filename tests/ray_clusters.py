"""A real Ray cluster of several nodes, as processes of this machine, on loopback alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Read when ray is imported; the nodes inherit them. Without the first, 127.0.0.1 is replaced by another address.
os.environ.update(
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled",
    RAY_DISABLE_IMPORT_WARNING="1", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
)  # fmt: skip
PORT = int(os.environ.get("SEEDPROOF_RAY_PORT", "19010"))
ADDRESS = f"127.0.0.1:{PORT}"


@contextmanager
def ray_cluster(*cpus: int) -> Iterator["object"]:
    """A head without room for workers, and one node for each number of cores; gives `ray.cluster_utils.Cluster`."""
    from ray.cluster_utils import Cluster

    here, before = Path(__file__).resolve().parent, os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{here.parent}{os.pathsep}{here}"
    cluster = Cluster()
    try:
        start_head(cluster)
        for count in cpus:
            cluster.add_node(node_ip_address="127.0.0.1", num_cpus=count)
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.pop("PYTHONPATH")
        os.environ.update({} if before is None else {"PYTHONPATH": before})


def start_head(cluster) -> None:
    """The first node, always at ADDRESS."""
    cluster.add_node(node_ip_address="127.0.0.1", num_cpus=0, include_dashboard=False, gcs_server_port=PORT)
