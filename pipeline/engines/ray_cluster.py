"""The cluster that the Ray engine works on: the one that is there or one of its own, what it holds and sees."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import cloudpickle
import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.exceptions import AuthenticationError, RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.engines.units import describe

OBJECT_STORE = 200_000_000
"""Bytes of the object store of a cluster of our own: what starts the workers goes through it, once."""
REACH = 5.0
"""Seconds in which a cluster's head must accept a connection; Ray itself would try for many minutes."""
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""What a cluster's head is asked, as `ray health-check` does."""
EXAMINE = 120.0
"""Seconds in which each node must have examined what it sees; the first import on a cold disk is slow."""


@contextmanager
def connected(address: str | None, cpus: float) -> Iterator[None]:
    """In the cluster that this process is in already, else in the named one (RAY_ADDRESS too), else in one of its own.

    What was joined is left again, and only what was started is stopped. Raises ValueError where no cluster answers.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("local", "auto"):
        _knock(address)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address == "local":
            _start(cpus)
        else:
            _join(address)
        if main:
            signal.signal(signal.SIGTERM, handler)  # ray.init puts its own in its place
        yield
    finally:
        ray.shutdown()


def _start(cpus: float) -> None:
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under `uv run`, workers would install all anew
    ray.init(
        address="local",
        num_cpus=math.ceil(cpus),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        log_to_driver=False,
        logging_level="ERROR",
    )


def _knock(address: str) -> None:
    """Raises ValueError where nobody accepts a connection, or not without a token: Ray would try for 20 s or more."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), REACH).close()
    except (OSError, ValueError):
        raise ValueError(
            f"no Ray cluster answers at {address!r}: give HOST:PORT of its head, or auto on a node of it"
        ) from None
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(ALIVE)(b"", timeout=REACH)
        except grpc.RpcError as error:  # what else there is, ray.init says better
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise _locked(address) from None
        except AuthenticationError:
            raise _locked(address) from None


def _locked(address: str) -> ValueError:
    return ValueError(
        f"the Ray cluster at {address!r} asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH where "
        "it is not ~/.ray/auth_token"
    )


def _join(address: str) -> None:
    try:
        ray.init(address=address, logging_level="ERROR")
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster answers at {address!r}: {' '.join(str(error).split())}") from None
    except AuthenticationError:
        raise _locked(address) from None


class View(NamedTuple):
    """What a cluster has for workers of one kind."""

    held: int
    """Workers that its nodes hold, whatever else runs there."""
    grows: bool
    """Whether an autoscaler (v2) adds nodes when they are asked for."""
    coming: bool
    """Whether nodes are on their way."""
    refused: int
    """Workers that the autoscaler was asked for and has no node for."""


def view(needs: dict[str, float]) -> View:
    """The cluster as it is now."""
    held = sum(room(node["Resources"], needs) for node in ray.nodes() if node["Alive"])
    reply = GetClusterStatusReply()
    reply.ParseFromString(ray._private.worker.global_worker.gcs_client.get_cluster_status(timeout_s=REACH))
    said = reply.autoscaling_state
    shape = {name: amount for name, amount in needs.items() if amount}
    refused = sum(dict(request.resources_bundle) == shape for request in said.infeasible_resource_requests)
    coming = bool(said.pending_instance_requests or said.pending_instances)
    return View(held, reply.HasField("autoscaling_state"), coming, refused)


def no_room(needs: dict[str, float]) -> ValueError:
    """Why no worker will ever run."""
    there = "; ".join(sorted({in_words(node["Resources"]) for node in ray.nodes() if node["Alive"]}))
    return ValueError(
        f"a worker asks for {in_words(needs)}; no node has that (there are nodes of {there}) and none is to come: "
        "ask for less with --worker-cpus and --worker-gpus, or add nodes"
    )


def room(resources: dict[str, float], needs: dict[str, float]) -> int:
    """Workers that a node holds."""
    return min(int(resources.get(name, 0) / amount) for name, amount in needs.items() if amount)


def in_words(resources: dict[str, float]) -> str:
    """CPUs and GPUs in words."""
    return f"{resources.get('CPU', 0):g} CPU and {resources.get('GPU', 0):g} GPU"


def examine(check: bytes) -> str | None:
    """What `check` objects to on this node, with the node's name, if anything."""
    try:
        objection = cloudpickle.loads(check)()
    except Exception as error:  # whatever opening a file there may raise
        objection = describe(error)[1]
    return objection and f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}): {objection}"


def preflight(check: bytes, needs: dict[str, float]) -> set[str]:
    """Nodes on which `check` has nothing to object; it runs once on each that could hold a worker, save this one.

    Raises ValueError that names the node where it has.
    """
    this = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["Alive"] and room(node["Resources"], needs)
    }
    task = ray.remote(num_cpus=0, max_retries=1)(examine)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(check): node
        for node in nodes
        if node != this
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=EXAMINE) if asked else ([], [])
    seen = {this}
    for reference in ready:
        try:
            objection = ray.get(reference)
        except (RayTaskError, RuntimeEnvSetupError) as error:
            objection = f"node {nodes[asked[reference]]} cannot run workers: {str(error).strip().splitlines()[-1]}"
        except RayError:  # the node died; whichever takes its place is asked by the first worker there
            continue
        if objection:
            raise ValueError(objection)
        seen.add(asked[reference])
    if late:
        raise ValueError(f"node {nodes[asked[late[0]]]} did not answer within {EXAMINE:g} s: is its storage there?")
    return seen
