"""A Ray cluster whose nodes are processes of this machine, bound to loopback; for tests and benchmarks of the pool."""

from __future__ import annotations

import logging
import os
from typing import Any

from align.runtime.ray_cluster import LOOPBACK_VARIABLE

OBJECT_STORE_BYTES = 80 << 20


class RayNodes:
    """A head without room for workers, to which this process may connect, and nodes for them."""

    def __init__(self, nodes: int, *, cpus: int = 2, gpus: int = 0, look_milliseconds: int = 1000) -> None:
        """Start a cluster, some two to four seconds of a core per node.

        Args:
            cpus, gpus: what every node says that it has.
            look_milliseconds: how often the head looks whether a node is there. After five looks in vain it is gone; Ray itself
                would look every 3000.
        """
        # Ray gives its workers what other processes leave of the cores. Beside other tests they would take minutes to start.
        os.environ.update({LOOPBACK_VARIABLE: "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"})
        logging.getLogger("ray").setLevel(logging.ERROR)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._has = {"num_cpus": cpus, "num_gpus": gpus}
        self._add(num_cpus=0, _system_config={"health_check_period_ms": look_milliseconds})
        self._nodes = [self._add(wait=False, **self._has) for _ in range(nodes)]
        self._cluster.wait_for_nodes(timeout=120)

    def _add(self, **options: Any) -> Any:
        return self._cluster.add_node(
            node_ip_address="127.0.0.1", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **options
        )

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self._cluster.address)

    @property
    def raylets(self) -> list[int]:
        """The process of each node that starts its workers; a node ends with it."""
        return [node.all_processes["raylet"][0].process.pid for node in self._nodes]

    def replace(self, raylet: int) -> int:
        """Add a node in place of one that was killed; its `raylet`."""
        [dead] = [node for node, process in zip(self._nodes, self.raylets, strict=True) if process == raylet]
        self._nodes.remove(dead)
        self._cluster.remove_node(dead, allow_graceful=False)
        self._nodes.append(self._add(**self._has))
        return self.raylets[-1]

    def close(self) -> None:
        """End all of them."""
        self._cluster.shutdown()
