"""One incarnation of a guest as the machine holds it: what it was launched with, its processes, what it attached."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from everram.runtime.errors import InvalidArgument
from everram.runtime.machine.freezer import Freezer
from everram.runtime.machine.launch import Program
from everram.runtime.machine.loop import Timer
from everram.runtime.machine.tree import GUEST_MARK, MACHINE_MARK


@dataclass(frozen=True, slots=True)
class Grant:
    """See `environment.Grant`, whose members these are."""

    label: str
    role: str
    memory: str
    size_bytes: int
    tracked: bool
    lacking: bool


@dataclass(frozen=True, slots=True)
class Launch:
    """See `environment.GuestLaunch`, whose members these are, as they came from the host."""

    guest_id: str
    name: str
    epoch: int
    argv: tuple[str, ...]
    working_directory: str
    environment: tuple[tuple[str, str], ...]
    log_path: str
    grants: tuple[Grant, ...]
    port: int

    @staticmethod
    def from_payload(payload: Any) -> Launch:
        """Raises InvalidArgument."""
        try:
            launch = Launch(
                guest_id=_text(payload["guest_id"]),
                name=_text(payload["name"]),
                epoch=_number(payload["epoch"]),
                argv=tuple(_text(word) for word in payload["argv"]),
                working_directory=_text(payload["working_directory"]),
                environment=tuple((_text(key), _text(value)) for key, value in payload["environment"]),
                log_path=_text(payload["log_path"]),
                grants=tuple(_grant(grant) for grant in payload["grants"]),
                port=_number(payload["port"]),
            )
            launch._check()
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(f"malformed launch of a guest: {error}") from error
        return launch

    def _check(self) -> None:
        if not self.guest_id or "/" in self.guest_id or self.guest_id.startswith("."):
            raise ValueError(f"guest_id is {self.guest_id!r}")
        if not self.argv or not self.argv[0]:
            raise ValueError("there is no program")
        if not self.log_path or self.log_path.startswith("/") or ".." in self.log_path.split("/"):
            raise ValueError(f"log_path {self.log_path!r} does not lie in the state folder")

    def program(self, *, mark: str, attach: str, state_dir: str, bin_dir: str, cgroup: str) -> Program:
        """What to start: everram's own programs first on PATH, and the variables by which it finds its memory."""
        environment = dict(self.environment)
        path = environment.get("PATH", os.defpath)
        environment |= {
            "PATH": f"{bin_dir}:{path}" if path else bin_dir,
            MACHINE_MARK: mark,
            GUEST_MARK: self.guest_id,
            "EVERRAM_NAME": self.name,
            "EVERRAM_EPOCH": str(self.epoch),
            "EVERRAM_ATTACH": attach,
        }
        environment.pop("EVERRAM_PORT", None)
        if self.port:
            environment["EVERRAM_PORT"] = str(self.port)
        return Program(
            argv=[os.fsencode(word) for word in self.argv],
            working_directory=os.fsencode(self.working_directory),
            environment={os.fsencode(key): os.fsencode(value) for key, value in environment.items()},
            output_path=f"{state_dir}/{self.log_path}",
            cgroup=cgroup,
        )


@dataclass(slots=True)
class Tracking:
    """The userfaultfd an attached process handed in; kept because blocked guests would go on with zeros without it."""

    userfaultfd: int
    ranges: list[dict[str, Any]]
    """Members of `environment.TrackedRange`."""
    served: bool = False
    """Whether a host has said that it serves them."""
    told: int = 0
    """The incarnation of the host that has got it; each gets it once, by event or by asking."""

    def close(self) -> None:
        os.close(self.userfaultfd)


@dataclass(slots=True)
class Resident:
    launch: Launch
    freezer: Freezer
    tracking: Tracking | None = None
    poll: Timer | None = None
    """The next look whether it has stopped, or is gone."""

    def drop_tracking(self) -> None:
        if self.tracking is not None:
            self.tracking.close()
            self.tracking = None


def _grant(payload: Any) -> Grant:
    return Grant(
        label=_text(payload["label"]),
        role=_text(payload["role"]),
        memory=_text(payload["memory"]),
        size_bytes=_number(payload["size_bytes"]),
        tracked=bool(payload["tracked"]),
        lacking=bool(payload.get("lacking")),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{value!r} is not a text")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a number of at least 0")
    return value
