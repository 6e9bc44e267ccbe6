"""The connection to a Ray cluster that runs already. The one place that imports Ray."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from align.errors import EnvironmentProblem

ADDRESS_VARIABLE = "RAY_ADDRESS"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray replaces 127.0.0.1 by the machine's address in the network unless this is 0; then nodes stay on loopback, on Linux too."""
PROBE_SECONDS = 5.0
NODES_SECONDS = 300.0
"""How long the nodes of a new cluster may take to find each other."""
FEW_TRIES = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Read when Ray is imported. It tries 20 times, for 40 seconds each, where something answers that is not Ray."""


@contextmanager
def connected(address: str, what: str = "pool: ray") -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address` (host:port of its head, or auto).

    A connection that the caller's process has already is used, and stays.

    Args:
        what: setting that needs it.
    Raises:
        EnvironmentProblem: if Ray is not installed, or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise EnvironmentProblem(
            f"{what} needs Ray, which is not installed in this environment", hint="pip install 'align-llm[ray]', on every node."
        )
    host, port = _head_of(address)
    if not _listens(host, port):
        # Ray itself would try for minutes.
        raise EnvironmentProblem(
            f"no Ray cluster answers at {host}:{port}", hint="Look at the address; `ray status --address …` says what is there."
        )
    for name, value in FEW_TRIES.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        with _sigterm_as_before(), _on_loopback(host in LOOPBACK and not _listens(_own_address(), port)):
            ray.init(address=f"{host}:{port}", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"Ray's cluster at {host}:{port} cannot be joined: {' '.join(str(error).split())[:300]}",
            hint="This machine must be a node of the cluster, with the same versions of Ray and Python.",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def wait_for_nodes(address: str, nodes: int, *, seconds: float = NODES_SECONDS) -> None:
    """Return once a cluster that is being started has so many nodes.

    Args:
        address: host:port of its head.
        nodes: the head among them.
    Raises:
        EnvironmentProblem: if it has not after that time.
    """
    deadline, alive = time.monotonic() + seconds, 0
    while True:
        with suppress(EnvironmentProblem), connected(address) as ray:
            while (alive := sum(node["Alive"] for node in ray.nodes())) < nodes and time.monotonic() < deadline:
                time.sleep(0.5)
        if alive >= nodes:
            return
        if time.monotonic() >= deadline:
            raise EnvironmentProblem(
                f"Ray's cluster at {address} has {alive} of {nodes} nodes after {seconds:.0f} seconds",
                hint="The logs of Ray on each node say why.",
            )
        time.sleep(0.5)


def _head_of(address: str) -> tuple[str, int]:
    if address == "auto":
        address = os.environ.get(ADDRESS_VARIABLE, "")
        # Written by `ray start`, and by Ray's own search for a running cluster.
        current = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
        if not address and current.exists():
            address = current.read_text().strip()
        if not address:
            raise EnvironmentProblem(
                "no Ray cluster runs on this machine",
                hint="Start one with `ray start --head`, or set ray: {address: HOST:PORT} in the machine file.",
            )
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise EnvironmentProblem(f"ray: address: {address} is not HOST:PORT", hint="Such as 10.0.0.1:6379, Ray's head node.")
    return host.strip("[]"), int(port)


def _listens(host: str | None, port: int) -> bool:
    if host is None:
        return False
    try:
        socket.create_connection((host, port), PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _own_address() -> str | None:
    """Of this machine in its network; None without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: UDP sends nothing here
        except OSError:
            return None
        return str(probe.getsockname()[0])


@contextmanager
def _on_loopback(alone: bool) -> Iterator[None]:
    """With `alone`, Ray takes 127.0.0.1 as it is; it has no other switch once it is imported. See LOOPBACK_VARIABLE."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not alone
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _sigterm_as_before() -> Iterator[None]:
    """Ray's start replaces the handler of SIGTERM by one that exits; ours lets a stage stop at its next item."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
