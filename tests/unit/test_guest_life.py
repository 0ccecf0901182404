"""What follows from how an incarnation of a guest ended."""

import pytest

from everram.actors.hypervisor.life import (
    FIRST_BACKOFF_S,
    LONGEST_BACKOFF_S,
    MAX_ENDS_IN_WINDOW,
    WINDOW_S,
    Ends,
    Rest,
    Restart,
    describe,
)
from everram.runtime.contracts import common_pb2 as pb


@pytest.mark.parametrize(
    ("policy", "exit_status", "restarts"),
    [
        (pb.ALWAYS, 0, True),
        (pb.ALWAYS, 3, True),
        (pb.ON_FAILURE, 0, False),
        (pb.ON_FAILURE, 3, True),
        (pb.ON_FAILURE, 137, True),
        (pb.RESTART_POLICY_UNSPECIFIED, 137, True),
        (pb.RESTART_POLICY_UNSPECIFIED, 0, False),
        (pb.NO, 137, False),
    ],
)
def test_policy(policy: pb.RestartPolicy, exit_status: int, restarts: bool) -> None:
    assert isinstance(Ends().decide(policy, exit_status, 0.0), Restart) is restarts


def test_backoff_doubles_up_to_a_limit_and_then_gives_up() -> None:
    ends = Ends()
    decisions = [ends.decide(pb.ALWAYS, 1, now_s=float(i)) for i in range(MAX_ENDS_IN_WINDOW + 1)]
    delays = [d.delay_s for d in decisions if isinstance(d, Restart)]
    assert delays[0] == FIRST_BACKOFF_S
    assert delays == sorted(delays)
    assert max(delays) == LONGEST_BACKOFF_S
    last = decisions[-1]
    assert isinstance(last, Rest)
    assert last.state == pb.FAILED
    assert "exited with status 1" in last.reason


def test_ends_long_ago_do_not_count() -> None:
    ends = Ends()
    for i in range(MAX_ENDS_IN_WINDOW):
        ends.decide(pb.ALWAYS, 1, now_s=float(i))
    assert ends.decide(pb.ALWAYS, 1, now_s=WINDOW_S + MAX_ENDS_IN_WINDOW) == Restart(FIRST_BACKOFF_S)


def test_describe() -> None:
    assert describe(3) == "exited with status 3"
    assert describe(137) == "was killed by signal 9"
