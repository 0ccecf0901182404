"""`everram status`: gathers what the supervisor and the hosts say, and prints it as tables or as one JSON object."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

from everram.runtime.cli.output import emit, plural, say, table
from everram.runtime.cli.units import format_duration, format_size
from everram.runtime.errors import EverramError

if TYPE_CHECKING:
    from everram.runtime.client import Cluster, Host

WATCH_INTERVAL_S = 1.0
"""As fast as a person reads."""
ASK_TIMEOUT_S = 1.0
"""A host that does not answer by then is shown without details: `status` must not hang with what it reports on."""
CLEAR_SCREEN = "\x1b[H\x1b[2J"


async def once(args: argparse.Namespace) -> int:
    from everram.runtime.client import Cluster

    async with await Cluster.connect(args.cluster, args.dir) as cluster:
        _show(await gather(cluster), args.json)
    return 0


async def watch(args: argparse.Namespace) -> int:
    """Again and again, on one connection, until the cluster ends or Ctrl-C."""
    from everram.runtime.client import Cluster

    async with await Cluster.connect(args.cluster, args.dir) as cluster:
        while True:
            seen = await gather(cluster)
            if not args.json:
                print(CLEAR_SCREEN, end="")
            _show(seen, args.json)
            await asyncio.sleep(WATCH_INTERVAL_S)


async def gather(cluster: Cluster) -> dict[str, Any]:
    """The whole cluster as one JSON object."""
    from everram.runtime.contracts.common_pb2 import Empty

    status = await cluster.supervisor.status(Empty(), timeout_s=ASK_TIMEOUT_S)
    details = await asyncio.gather(*(_host(host) for host in cluster.hosts))
    machines: list[dict[str, Any]] = [
        {
            "name": m.name,
            "state": m.state,
            "pid": m.pid,
            "host_pid": m.host_pid,
            "host_state": m.host_state,
            "host_restarts": m.host_restarts,
            "host_socket": m.host_socket,
            "reason": m.reason,
            "cut": m.cut,
            "faults": list(m.faults),
            "mains": m.mains,
            "battery_s": round(m.battery_s, 3),
        }
        for m in status.machines
    ]
    for machine, detail in zip(machines, details, strict=True):
        machine.update(detail)
    coordination = status.coordination
    leaders = [h["lease"]["leader"] for h in machines if h.get("lease", {}).get("held") and h["lease"]["leader"]]
    return {
        "cluster": status.cluster,
        "cluster_id": status.cluster_id,
        "dir": str(cluster.folders.state),
        "pid": status.pid,
        "hosts": machines,
        "leader": leaders[0] if leaders else "",
        "waiting": next((h["waiting"] for h in machines if h.get("waiting")), []),
        "coordination": {
            "address": coordination.address,
            "state": coordination.state,
            "pid": coordination.pid,
            "restarts": coordination.restarts,
        },
        "ports": [
            {
                "port": p.port,
                "guest": p.guest,
                "epoch": p.epoch,
                "backend_port": p.backend_port,
                "connections": p.connections,
            }
            for p in status.ports
        ],
    }


async def _host(host: Host) -> dict[str, Any]:
    """What a host says of itself; only "error" if it does not answer."""
    from everram.runtime.contracts.common_pb2 import Empty

    try:
        own, nvm, guests, lease, power = await asyncio.gather(
            host.host.status(Empty(), timeout_s=ASK_TIMEOUT_S),
            host.nvm_device.status(Empty(), timeout_s=ASK_TIMEOUT_S),
            host.hypervisor.list(Empty(), timeout_s=ASK_TIMEOUT_S),
            host.availability.status(Empty(), timeout_s=ASK_TIMEOUT_S),
            host.power_monitor.status(Empty(), timeout_s=ASK_TIMEOUT_S),
        )
    except EverramError as error:
        return {"error": error.message}
    capped = power.budget.tracking
    return {
        "version": own.version,
        "memory_id": own.memory_id,
        "uptime_s": round(own.uptime_s, 3),
        "memory": {"capacity_bytes": own.memory_capacity_bytes, "allocated_bytes": own.memory_allocated_bytes},
        "nvm": {
            "capacity_bytes": nvm.capacity_bytes,
            "allocated_bytes": nvm.allocated_bytes,
            "regions": nvm.regions,
            "snapshots": nvm.snapshots,
            "store_bytes": nvm.store_bytes,
            "storage_bytes": nvm.storage_bytes,
            "waiting_writers": nvm.waiting_writers,
            "warning": nvm.warning,
        },
        "guests": len(guests.guests),
        "lease": {
            "held": lease.held,
            "remaining_s": round(lease.remaining_s, 3),
            "renewals": lease.renewals,
            "leader": lease.leader,
        },
        "waiting": [{"guest": each.name, "host": each.host} for each in lease.waiting],
        "dirty": {"bytes": power.budget.dirty_bytes, "cap_bytes": power.budget.cap_bytes} if capped else None,
        "image": power.image,
        "restored_from": power.restored_from,
        "links": {link.peer: link.state for link in own.links},
        "channels": {channel.peer: channel.carrier for channel in own.channels},
        "channel_refused": own.channel_refused,
        "missing": list(own.missing),
        "actors": [{"service": a.service, "state": a.state, "restarts": a.restarts} for a in own.actors],
    }


def _show(seen: dict[str, Any], as_json: bool) -> None:
    from everram.runtime.client.cluster import waiting_words

    if as_json:
        emit(seen)
        return
    say(f'cluster "{seen["cluster"]}" in {seen["dir"]}')
    say(table(("HOST", "STATE", "PID", "RESTARTS", "GUESTS", "NVM USED", "LEASE", "UP"), map(_row, seen["hosts"])))
    if seen["leader"]:
        say(f"leader: {seen['leader']}")
    coordination = seen["coordination"]
    restarts = f", restarted {plural(coordination['restarts'], 'time')}" if coordination["restarts"] else ""
    say(f"coordination: {coordination['state']} (pid {coordination['pid']}{restarts})")
    for port in seen["ports"]:
        behind = f"epoch {port['epoch']}" if port["backend_port"] else "nobody serves now"
        say(f"port {port['port']}: guest {port['guest']}, {behind}, {plural(port['connections'], 'connection')}")
    for host in seen["hosts"]:
        if note := host["reason"] or host.get("error", "") or host.get("nvm", {}).get("warning", ""):
            say(f"{host['name']}: {note}")
    for guest in seen["waiting"]:
        say(waiting_words(guest["guest"], guest["host"]))
    for host in seen["hosts"]:
        if channels := host.get("channels"):
            say(f"{host['name']} reaches the memory of {', '.join(f'{p} by {c}' for p, c in channels.items())}")
    for sentence in sorted({sentence for host in seen["hosts"] for sentence in host.get("missing", [])}):
        say(f"on this computer: {sentence}")


def _row(host: dict[str, Any]) -> tuple[object, ...]:
    state = host["host_state"] if host["state"] == "up" else host["state"]
    if host["cut"]:
        state = "cut off" if state == "ready" else f"{state}, cut off"
    state = ", ".join((state, *host["faults"]))
    if "error" in host:
        return (host["name"], state, host["host_pid"], host["host_restarts"], "", "", "", "")
    nvm = host["nvm"]
    return (
        host["name"],
        state,
        host["host_pid"],
        host["host_restarts"],
        host["guests"],
        f"{format_size(nvm['allocated_bytes'])}/{format_size(nvm['capacity_bytes'])}",
        "held" if host["lease"]["held"] else "none",
        format_duration(host["uptime_s"]),
    )
