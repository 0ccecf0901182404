"""What a host may ask of its machine: one function for each word after DO=.

Each takes the machine, the payload and `reply`, which it calls once: at once, or when the core says that it is done.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from everram.runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from everram.runtime.machine.hostlink import Reply
from everram.runtime.machine.lives import GuestLife
from everram.runtime.machine.protocol import doorbell_name
from everram.runtime.machine.resident import Launch

if TYPE_CHECKING:
    from everram.runtime.machine.process import MachineProcess


Request = Callable[["MachineProcess", dict[str, Any], Reply], None]


def spawn(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    launch = Launch.from_payload(payload)
    request = machine.expect(reply, lambda: guest_payload(machine.core.guests[launch.guest_id]))
    machine.launching[launch.guest_id] = launch
    machine.ask(request, lambda now: machine.core.spawn(now, launch.guest_id, launch.epoch, request))


def freeze(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    guest_id, reason = text(payload, "guest_id"), text(payload, "reason")
    request = machine.expect(reply)
    machine.ask(request, lambda now: machine.core.freeze(now, guest_id, reason, request))


def thaw(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    machine.feed(machine.core.thaw(machine.now_ns(), text(payload, "guest_id"), text(payload, "reason")))
    reply()


def send_signal(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    guest = known(machine, payload)
    wanted = number(payload, "signal_number")
    if wanted in (signal.SIGSTOP, signal.SIGCONT):
        raise InvalidArgument("a guest is stopped by freezing it and continued by thawing it, not by signals")
    if guest.state in ("exited", "ending"):
        raise FailedPrecondition(f"guest {guest.guest_id} has ended")
    try:
        os.killpg(guest.pid, wanted)
    except (OSError, OverflowError) as error:
        raise InvalidArgument(f"signal {wanted} cannot be sent to guest {guest.guest_id}: {error}") from error
    reply()


def kill(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    guest_id = text(payload, "guest_id")
    request = machine.expect(reply, lambda: guest_payload(machine.core.guests[guest_id]))
    machine.ask(request, lambda now: machine.core.kill(now, guest_id, request))


def forget(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    guest_id = text(payload, "guest_id")
    machine.feed(machine.core.forget(machine.now_ns(), guest_id))
    machine.residents.pop(guest_id, None)
    machine.store.remove(doorbell_name(guest_id))
    reply()


def admit(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    guest_id = text(payload, "guest_id")
    # A host of an earlier version does not say which process it has come to know.
    pid = number(payload, "pid") if "pid" in payload else known(machine, payload).attached_pid
    machine.feed(machine.core.admit(machine.now_ns(), guest_id, pid))
    resident = machine.residents.get(guest_id)
    if resident is not None and resident.tracking is not None and machine.core.guests[guest_id].attached_pid == pid:
        resident.tracking.served = payload.get("served") is True
    reply()


def guests(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    reply([guest_payload(guest) for _, guest in sorted(machine.core.guests.items())])


def tracked(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    """Attached guests whose userfaultfd this host does not have yet, with those; asked again until there are none."""
    events, fds = machine.untold_tracking()
    reply(events, fds)


def lease(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    machine.feed(machine.core.lease(machine.now_ns(), number(payload, "deadline_ns")))
    reply()


def mains(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    machine.feed(machine.core.set_mains(machine.now_ns(), payload.get("on") is True))
    reply()


def power_off(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    """There is no answer but the end."""
    machine.feed(machine.core.power_off(machine.now_ns()))


def power_kept(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    machine.feed(machine.core.power_kept(machine.now_ns()))
    reply()


def free_port(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    reply(machine.ports.free())


def handed_over(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    """It has let go of everything, and will end by itself."""
    reply()
    machine.feed(machine.core.upgrade.handed_over(machine.now_ns(), machine.host_incarnation))


def ingested(machine: MachineProcess, payload: dict[str, Any], reply: Reply) -> None:
    """It has everything that was passed to it, and has read the metadata."""
    machine.feed(machine.core.upgrade.ingested(machine.now_ns(), machine.host_incarnation))
    reply()


BY_WORD: dict[str, Request] = {
    "spawn": spawn,
    "freeze": freeze,
    "thaw": thaw,
    "signal": send_signal,
    "kill": kill,
    "forget": forget,
    "admit": admit,
    "guests": guests,
    "tracked": tracked,
    "lease": lease,
    "free-port": free_port,
    "mains": mains,
    "power-off": power_off,
    "power-kept": power_kept,
    "handed-over": handed_over,
    "ingested": ingested,
}


def guest_payload(guest: GuestLife) -> dict[str, Any]:
    """The members of `environment.GuestProcess`."""
    return {
        "guest_id": guest.guest_id,
        "epoch": guest.epoch,
        "pid": guest.live_pid,
        "exit_status": guest.exit_status if guest.state == "exited" else -1,
        "freeze_reasons": sorted(guest.reasons),
        "attached_pid": guest.attached_pid,
    }


def text(payload: dict[str, Any], name: str) -> str:
    value = payload.get(name)
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} is {value!r}, not a text")
    return value


def number(payload: dict[str, Any], name: str) -> int:
    value = payload.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f"{name} is {value!r}, not a number")
    return value


def known(machine: MachineProcess, payload: dict[str, Any]) -> GuestLife:
    guest_id = text(payload, "guest_id")
    if guest_id not in machine.core.guests:
        raise NotFound(f"the machine knows no guest {guest_id}")
    return machine.core.guests[guest_id]
