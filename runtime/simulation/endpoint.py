"""Requests over the simulated network to one place at which one process after another answers.

    endpoint = Endpoint(fabric, "coordination")
    endpoint.open(domain, service)                        # a process listens; a later one takes the place over
    result = await endpoint.call("h1", lambda service: service.put(...))

What a gRPC or TCP client sees of a server, without the bytes: a request takes its time, is refused where nobody listens
(it certainly took no effect), breaks when the process dies with it (it may have), and is never answered by a frozen one
or across a cut. Deadlines are the caller's.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar

from everram.runtime.errors import EverramError, Unavailable
from everram.runtime.simulation.domain import Domain
from everram.runtime.simulation.network import Fabric

T = TypeVar("T")
ServiceT = TypeVar("ServiceT")


class Refused(Unavailable):
    """Nobody listens: the request took no effect."""


class Broken(Unavailable):
    """The process ended with the request in it: unknown."""


class Endpoint(Generic[ServiceT]):
    """One place of the network."""

    def __init__(self, fabric: Fabric, place: str) -> None:
        self.place = place
        self.fabric = fabric
        self._domain: Domain | None = None
        self.service: ServiceT | None = None
        """Whoever answers now."""
        self._open: dict[int, _Call[ServiceT, Any]] = {}
        """Requests that arrived and are not answered, in the order of their arrival."""
        self._arrivals = itertools.count()

    def open(self, domain: Domain, service: ServiceT) -> None:
        """`service` answers from now on, in `domain`, until that dies."""
        self._domain, self.service = domain, service
        domain.on_death.append(partial(self._died, domain))

    async def call(self, source: str, act: Callable[[ServiceT], Awaitable[T]]) -> T:
        """Ask from `source`. Raises Refused, Broken, or what `act` raised if that is an EverramError."""
        call: _Call[ServiceT, T] = _Call(self, source, act)
        call.send()
        result = await call.outcome
        if isinstance(result, EverramError):
            raise type(result)(result.message, unknown=result.unknown)
        return result

    def arrived(self, call: _Call[ServiceT, Any]) -> None:
        """In nobody's domain."""
        domain, service = self._domain, self.service
        if domain is None or service is None:
            call.answer(Refused(f"nobody listens at {self.place} now"))
            return
        number = next(self._arrivals)
        self._open[number] = call
        self.fabric.loop.spawn(domain, self._perform(number, call, service))

    async def _perform(self, number: int, call: _Call[ServiceT, Any], service: ServiceT) -> None:
        try:
            call.answer(await call.act(service))
        except EverramError as error:
            call.answer(error)
        self._open.pop(number, None)

    def _died(self, domain: Domain) -> None:
        if self._domain is not domain:
            return
        self._domain = self.service = None
        calls, self._open = self._open, {}
        for call in calls.values():
            call.answer(Broken(f"the connection to {self.place} broke", unknown=True))


class _Call(Generic[ServiceT, T]):
    """One request on its way, and its answer on the way back."""

    def __init__(self, endpoint: Endpoint[ServiceT], source: str, act: Callable[[ServiceT], Awaitable[T]]) -> None:
        self.outcome: asyncio.Future[T | EverramError] = endpoint.fabric.loop.create_future()
        self.act = act
        self._endpoint = endpoint
        self._source = source
        self._answered = False

    def send(self) -> None:
        fabric, place = self._endpoint.fabric, self._endpoint.place
        when_ns = fabric.loop.now_ns + fabric.delay_ns()
        fabric.carry(self._source, place, when_ns, partial(self._endpoint.arrived, self), droppable=True)

    def answer(self, result: T | EverramError) -> None:
        if not self._answered:
            self._answered = True
            fabric, place = self._endpoint.fabric, self._endpoint.place
            when_ns = fabric.loop.now_ns + fabric.delay_ns()
            fabric.carry(place, self._source, when_ns, partial(self._arrive, result), droppable=True)

    def _arrive(self, result: T | EverramError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)
