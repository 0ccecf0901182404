"""A cell: one actor through its incarnations, with the mailbox that outlives each of them.

    starting -> running -> stopped
                running -> restarting -> running        a spawned task failed; after a back-off
                restarting -> failed                    it failed too often: the node fails with it

An incarnation is an actor object, the tasks it owns and the consumer of its mailbox. Whether it is started again is
decided by `everram.runtime.supervision`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from everram.runtime.actor import Actor, ActorContext, handlers_of
from everram.runtime.contracts import host_pb2
from everram.runtime.dispatch import Dispatcher
from everram.runtime.mailbox import Mailbox
from everram.runtime.method import Contract
from everram.runtime.supervision import Failures, GiveUp, RestartPolicy
from everram.runtime.tasks import TaskScope

if TYPE_CHECKING:
    from everram.runtime.node import Node

DRAIN_S = 5.0
"""How long an orderly stop lets an actor finish what waits; as long as its askers wait by default."""


class Incarnation:
    """One life of an actor: from its construction to the end of its last task."""

    def __init__(self, node: Node, actor: Actor, mailbox: Mailbox) -> None:
        name = f"{node.host}/{actor.contract.service.rsplit('.', 1)[-1]}"
        self.actor = actor
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.resources = ExitStack()
        self._scope = TaskScope(name, self._task_failed)
        self._work = TaskScope(f"{name}/later", self._task_failed)
        actor.context = ActorContext(node, actor.contract, self._scope, self.resources)
        self._log = actor.context.log
        self._dispatcher = Dispatcher(mailbox, handlers_of(actor), self._scope, self._work, self._log)

    async def start(self) -> None:
        await self.actor.on_start()
        self._scope.start(self._dispatcher.run(), name="mailbox")

    def _task_failed(self, name: str, error: BaseException) -> None:
        self._log.error("task %s failed", name, exc_info=error)
        if not self.failure.done():
            self.failure.set_result(error)
            self._dispatcher.give_up()

    async def drain(self) -> None:
        """Finish what waits, within DRAIN_S, then the actor's own end. Errors are logged: the stop goes on."""
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._dispatcher.drained()
        except TimeoutError:
            self._log.warning("stopped with work unfinished after %g s", DRAIN_S)
        if self.failure.done():
            return
        try:
            await self.actor.on_stop()
        except Exception as error:
            self._log.error("on_stop failed", exc_info=error)

    async def close(self) -> None:
        """End every task, then release the actor's resources."""
        try:
            await self._work.close()
        finally:
            try:
                await self._scope.close()
            finally:
                self.resources.close()


class Cell:
    """One actor of a node; see the module."""

    def __init__(
        self,
        node: Node,
        factory: Callable[[], Actor],
        first: Actor,
        mailbox: Mailbox,
        after: tuple[str, ...],
        policy: RestartPolicy,
    ) -> None:
        self.contract: Contract = first.contract
        self.mailbox = mailbox
        self.after = after  # services that start before
        self.state = "stopped"
        self.restarts = 0
        self._stopping = False
        self._node = node
        self._factory = factory
        self._next: Actor | None = first  # made by `Node.add` to learn its contract, used by the first start
        self._failures = Failures(policy)
        self._incarnation: Incarnation | None = None  # while running
        self._keeper = TaskScope(f"{node.host}/keeper")

    async def start(self) -> None:
        """Raises what the actor's `on_start` raised."""
        self.state = "starting"
        try:
            incarnation = await self._begin()
        except BaseException:
            self.state = "failed"
            self.mailbox.close(f"{self.mailbox.name} on {self._node.host} could not be started")
            raise
        self._keeper.start(self._keep(incarnation), name=self.contract.service)

    async def _begin(self) -> Incarnation:
        actor, self._next = self._next or self._factory(), None
        incarnation = Incarnation(self._node, actor, self.mailbox)
        try:
            await incarnation.start()
        except BaseException:
            await incarnation.close()
            raise
        self._incarnation, self.state = incarnation, "running"
        return incarnation

    async def _keep(self, incarnation: Incarnation) -> None:
        """Start the actor again whenever it fails, until it failed too often."""
        while True:
            error = await incarnation.failure
            if self._stopping:
                return  # `stop` closes it
            self.state, self._incarnation = "restarting", None
            await incarnation.close()
            revived = await self._restart(error)
            if revived is None:
                return
            incarnation = revived

    async def _restart(self, error: BaseException) -> Incarnation | None:
        """The next incarnation, or None once it failed too often."""
        loop = asyncio.get_running_loop()
        while True:
            decision = self._failures.decide(loop.time())
            if isinstance(decision, GiveUp):
                self.state = "failed"
                self.mailbox.close(f"{self.mailbox.name} on {self._node.host} has failed: {decision.reason}")
                self._node.actor_failed(self.contract.service, decision.reason, error)
                return None
            await asyncio.sleep(decision.delay_s)
            self.restarts += 1
            try:
                return await self._begin()
            except Exception as again:
                error = again

    async def stop(self) -> None:
        """Refuse new messages, finish those that wait, stop."""
        reason = f"{self.mailbox.name} on {self._node.host} has stopped"
        self.mailbox.refuse(reason)
        self._stopping = True
        incarnation = self._incarnation
        if incarnation is not None and not incarnation.failure.done():
            await incarnation.drain()
        await self._keeper.close()
        if self._incarnation is not None:
            await self._incarnation.close()
            self._incarnation = None
        self.mailbox.close(reason)
        if self.state != "failed":
            self.state = "stopped"

    def status(self) -> host_pb2.ActorStatus:
        return host_pb2.ActorStatus(
            service=self.contract.service,
            state=self.state,
            handled=self.mailbox.handled,
            queued=len(self.mailbox.entries),
            restarts=self.restarts,
        )
