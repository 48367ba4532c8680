"""Clients that write and read all the while, and notice what a store must never do: lose an acknowledged write, or not find
it."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterable
from types import TracebackType

from tests.cluster.cluster import Cluster, wait_until

from cartwheel.client.resp import CannotReach, Connection, ConnectionLost, ReplyError
from cartwheel.core.errors import CartwheelError

KEYS = 60
"""Of each client: few enough that each is written again and again."""
VISIT = 25
"""Writes, and as many reads, of a roaming client through one node, before it goes to the next."""


class Client(threading.Thread):
    """Counts its own keys up, and reads keys of all clients of its ``Load``: through one node, or, if the load roams, through one
    after the other."""

    def __init__(self, load: Load, number: int) -> None:
        super().__init__(daemon=True)
        self.load, self.number = load, number
        self.done = 0
        """Operations that went well."""
        self.refused: list[str] = []
        self.wrong: list[str] = []
        """Reads that did not find what had been acknowledged before they began."""
        self.cut_off = ""
        """Why a client that stays at its node gave up."""
        self.lost: list[str] = []
        """Connections that ended under a roaming client, with a request under way: it cannot know what became of that."""
        self.turned_away = 0
        """Nodes that it found closed, and passed by."""
        self.leave = threading.Event()
        self._random = random.Random(number)

    def run(self) -> None:
        if self.load.roams:
            self._roam()
            return
        try:
            with self.load.cluster.connect(self.number) as connection:
                while not self.leave.is_set():
                    self._step(connection)
        except (CartwheelError, OSError) as error:
            self.cut_off = str(error)

    def _roam(self) -> None:
        """Through one node after the other, beginning with its own. One that takes no connection, or ends it, is passed by."""
        numbers = list(self.load.clients)
        first = numbers.index(self.number)
        for number in itertools.cycle(numbers[first:] + numbers[:first]):
            try:
                with self.load.cluster.connect(number) as connection:
                    for _ in range(VISIT):
                        if self.leave.is_set():
                            return
                        self._step(connection)
            except CannotReach:
                self.turned_away += 1
                self.leave.wait(0.01)  # if all are closed, this must not keep a processor busy
            except ConnectionLost as error:
                self.lost.append(str(error))

    def _step(self, connection: Connection) -> None:
        try:
            self._write(connection.call)
            self._read(connection.call)
        except ReplyError as error:
            self.refused.append(str(error))

    def _write(self, call: object) -> None:
        key = f"{self.number}.{self._random.randrange(KEYS)}"
        value = self.load.tried.get(key, 0) + 1
        self.load.tried[key] = value
        call("SET", key, value)  # type: ignore[operator]
        self.load.acked[key] = value
        self.done += 1

    def _read(self, call: object) -> None:
        acked = self.load.acked
        key = self._random.choice(list(acked))
        least = acked[key]
        found = call("GET", key)  # type: ignore[operator]
        if found is None or int(found) < least:
            self.wrong.append(f"{key} is {found} at n{self.number}, and was acknowledged as {least}")
        self.done += 1


class Load:
    """A client at each of these nodes. To be used with ``with``: at the end they are stopped."""

    def __init__(self, cluster: Cluster, *numbers: int, roams: bool = False) -> None:
        self.cluster = cluster
        self.roams = roams
        self.tried: dict[str, int] = {}
        self.acked: dict[str, int] = {}
        self.clients: dict[int, Client] = {}
        self.add(*numbers)

    def add(self, *numbers: int) -> None:
        """One more client at each of these."""
        new = {number: Client(self, number) for number in numbers}
        self.clients |= new  # all of them before the first starts: a roaming client looks up where to go
        for client in new.values():
            client.start()
        self.wait_on(numbers)

    def wait_on(self, numbers: Iterable[int], more: int = 50) -> None:
        """Until each client of these nodes has had so many operations more, or failed."""
        clients = [self.clients[number] for number in numbers]
        marks = [client.done for client in clients]

        def on() -> bool:
            pairs = zip(clients, marks, strict=True)
            return all(client.done > mark + more or client.cut_off for client, mark in pairs)

        wait_until(on, "the load goes on")

    def end(self, *numbers: int) -> None:
        """The clients of these nodes leave."""
        for number in numbers:
            self.clients[number].leave.set()
            self.clients[number].join()

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(*self.clients)

    def check_undisturbed(self, *numbers: int) -> None:
        """No client of these nodes had an error, nor a wrong answer."""
        clients = [self.clients[number] for number in numbers]
        troubles = [(c.number, c.refused[:3], c.wrong[:3], c.cut_off) for c in clients]
        assert troubles == [(number, [], [], "") for number in numbers], self.cluster.logs()

    def check_nothing_lost(self, *numbers: int) -> None:
        """Every acknowledged write is read through each of these nodes, or what was written after it."""
        assert self.acked
        for number in numbers:
            with self.cluster.connect(number) as connection:
                for key, least in self.acked.items():
                    found = connection.call("GET", key)
                    assert isinstance(found, bytes), f"{key} is lost at n{number}: it was acknowledged as {least}"
                    assert least <= int(found) <= self.tried[key], f"{key} is {found!r} at n{number}, not {least}"
