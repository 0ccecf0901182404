"""What a user may ask to run."""

import pytest

from everram.actors.hypervisor.admission import MAX_COMMAND_BYTES, MAX_REGIONS, check
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.errors import InvalidArgument


def spec(**changes: object) -> pb.GuestSpec:
    return pb.GuestSpec(**{"name": "bank", "argv": [b"/bin/true"], **changes})  # type: ignore[arg-type]


def test_a_plain_guest_is_admitted() -> None:
    check(spec(regions=[pb.RegionSpec(name="ledger", size_bytes=4096)]))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (spec(name=""), "cannot be a guest's name"),
        (spec(name="../etc"), "cannot be a guest's name"),
        (spec(name="x" * 64), "cannot be a guest's name"),
        (spec(argv=[]), "needs a program"),
        (spec(argv=[b"python"]), "absolute path"),
        (spec(argv=[b"/bin/echo", b"x" * MAX_COMMAND_BYTES]), "at most"),
        (spec(copies=1), "logged regions"),
        (spec(copies=1, regions=[pb.RegionSpec(name="a", kind=pb.MAPPED)]), "logged regions"),
        (spec(copies=5, regions=[pb.RegionSpec(name="a")]), "may have 4"),
        (spec(publish_port=70000), "not a TCP port"),
        (spec(regions=[pb.RegionSpec(name="log")]), "cannot be a region's name"),
        (spec(regions=[pb.RegionSpec(name="a"), pb.RegionSpec(name="a")]), "named twice"),
        (spec(regions=[pb.RegionSpec(name=f"r{i}") for i in range(MAX_REGIONS + 1)]), "may have"),
    ],
)
def test_a_broken_rule_is_named(broken: pb.GuestSpec, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        check(broken)
