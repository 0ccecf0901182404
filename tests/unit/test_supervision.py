"""Supervision, decided: limits, window and back-off; and tasks, owned."""

from __future__ import annotations

import asyncio

import pytest

from everram.runtime.errors import FailedPrecondition
from everram.runtime.supervision import NEVER, Failures, GiveUp, Restart, RestartPolicy
from everram.runtime.tasks import TaskScope


def test_the_back_off_doubles_up_to_its_limit() -> None:
    failures = Failures(RestartPolicy(max_restarts=5, first_backoff_s=0.1, longest_backoff_s=0.5))
    decisions = [failures.decide(float(second)) for second in range(5)]
    assert decisions == [Restart(0.1), Restart(0.2), Restart(0.4), Restart(0.5), Restart(0.5)]
    assert failures.decide(5.0) == GiveUp("it failed 6 times within 30 s")


def test_old_failures_are_forgotten() -> None:
    failures = Failures(RestartPolicy(max_restarts=2, window_s=10, first_backoff_s=0.1))
    for now_s in range(0, 1000, 10):
        assert failures.decide(float(now_s)) == Restart(0.1)


def test_never_means_at_the_first_failure() -> None:
    assert isinstance(Failures(NEVER).decide(0.0), GiveUp)


async def test_a_scope_cancels_newest_first_and_waits() -> None:
    scope, ended = TaskScope("a scope"), []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    for number in range(3):
        scope.start(work(number), name=str(number))
    await asyncio.sleep(0)
    await scope.close()
    assert ended == [2, 1, 0]
    assert len(scope) == 0
    with pytest.raises(FailedPrecondition, match="has ended"):
        scope.start(work(4), name="late")


async def test_a_failure_goes_to_the_owner() -> None:
    told: list[tuple[str, str]] = []
    scope = TaskScope("a scope", lambda name, error: told.append((name, str(error))))

    async def work() -> None:
        raise ValueError("broken")

    scope.start(work(), name="work")
    await scope.wait_empty()
    assert told == [("a scope/work", "broken")]
    await scope.close()


async def test_a_failure_nobody_was_told_of_comes_out_of_close() -> None:
    scope = TaskScope("a scope")

    async def work() -> None:
        raise ValueError("broken")

    scope.start(work(), name="work")
    await scope.wait_empty()
    with pytest.raises(ValueError, match="broken"):
        await scope.close()
    await scope.close()


async def test_a_cancelled_close_still_waits_for_its_tasks() -> None:
    scope, may_end, ended = TaskScope("a scope"), asyncio.Event(), []

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()
            ended.append(True)

    scope.start(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    closing = asyncio.create_task(scope.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.sleep(0)
    assert not closing.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert ended == [True]
