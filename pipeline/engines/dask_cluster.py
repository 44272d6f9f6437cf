"""The Dask cluster of a run: the one that is named, the caller's, or one that is started for it and ended again."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from distributed import Client, LocalCluster, Worker

from pipeline.engines import template
from pipeline.engines.units import Unit

CONNECT = 20.0
"""Seconds that a scheduler may take to answer."""


class Cluster:
    """A cluster that others keep: its workers come and go as they please."""

    stays = True
    """After the run."""

    def __init__(self, client: Client, size: int = 1) -> None:
        self.client, self.size = client, size

    def addresses(self) -> set[str]:
        """The workers that live."""
        return set(self.client.nthreads())

    def hire(self, wanted: int) -> bool:
        """Sees to as many workers, where that is ours to do; whether more are on their way."""
        return False

    def shrink(self) -> None:
        """One worker fewer will have to do."""

    def cause_of_death(self, address: str) -> str:
        return f"{address} is gone"


class OwnCluster(Cluster):
    """Processes of the local engine, each with a Dask worker in it, so that they end with this process and need no
    guard in the caller's script; started when there is work for them and replaced when they die."""

    stays = False

    def __init__(self, client: Client, size: int, modules: Sequence[str]) -> None:
        super().__init__(client, size)
        self.forks = template.Forks(partial(host, client.scheduler.address), [__name__, *modules])
        self.number, self.deaths_at_start = 0, 0
        self.starting: list[template.Worker] = []
        self.hosts: dict[str, template.Worker] = {}
        self.causes: dict[str, str] = {}

    def addresses(self) -> set[str]:
        for host in list(self.starting):
            if host.connection.poll() or host.ended():
                self._hear(host)
        for address, host in list(self.hosts.items()):
            if host.ended():
                self.causes[address] = self.hosts.pop(address).cause_of_death()
        return set(self.hosts)

    def _hear(self, host: template.Worker) -> None:
        """What a process that is starting has to say: that it is up, or its worker's address."""
        message = host.receive()
        if message is None:
            self.starting.remove(host)
            self.deaths_at_start += 1
            cause = host.cause_of_death()
            if self.deaths_at_start > 2 and not self.hosts:
                raise RuntimeError(f"Dask workers die at the start, {self.deaths_at_start} times in a row ({cause})")
        elif message[0] == "ready":
            host.give(0)
        elif message[0] == "done":
            self.starting.remove(host)
            self.hosts[pickle.loads(message[1])] = host
            self.deaths_at_start = 0
        else:
            raise pickle.loads(message[1][2])

    def hire(self, wanted: int) -> bool:
        for _ in range(min(wanted, self.size) - len(self.hosts) - len(self.starting)):
            self.starting.append(self.forks.worker(self.number))
            self.number += 1
        return bool(self.starting)

    def shrink(self) -> None:
        self.size = max(1, self.size - 1)

    def cause_of_death(self, address: str) -> str:
        return self.causes.pop(address, "the scheduler lost it")

    def close(self, orderly: bool) -> None:
        self.forks.close([*self.hosts.values(), *self.starting], orderly)


def host(scheduler: str) -> Callable[[Unit], str]:
    """Called in a process of the local engine: runs a Dask worker beside it, and returns what tells its address."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)
    began: queue.Queue[Any] = queue.Queue()

    async def serve() -> None:
        async with Worker(scheduler, nthreads=1, memory_limit=0, dashboard=False) as worker:
            began.put(worker.address)
            await worker.finished()

    def work() -> None:
        try:
            asyncio.run(serve())
        except Exception as error:
            began.put(error)
        os._exit(1)  # without its scheduler it is of no use

    threading.Thread(target=work, daemon=True).start()
    address = began.get()
    if isinstance(address, Exception):
        raise address
    return lambda unit: str(address)


@contextmanager
def connected(scheduler: str | None, workers: int, modules: Sequence[str] = ()) -> Iterator[Cluster]:
    """The cluster for a run, left as it was or ended afterwards.

    Raises ValueError where no scheduler answers at the address.
    """
    address = scheduler or current()
    if address is not None:
        try:
            client = Client(address, set_as_default=False, timeout=CONNECT)
        except (OSError, ValueError, TimeoutError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"no Dask scheduler answers at {address}: {reason}") from None
        with client:
            yield Cluster(client)
        return
    with (
        LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL + 1
        ) as own,
        Client(own, set_as_default=False) as client,
    ):
        cluster, orderly = OwnCluster(client, workers, modules), False
        try:
            yield cluster
            orderly = True
        finally:
            cluster.close(orderly)


def current() -> str | None:
    """Address of the scheduler to which the caller has a client."""
    try:
        return str(Client.current().scheduler.address)
    except ValueError:
        return None
