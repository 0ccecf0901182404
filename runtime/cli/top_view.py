"""What `everram top` shows: from what was seen of a cluster to the lines of a screen. Plain functions, no terminal.

    lines = render(seen, before, width=80, height=24)

`seen` is what `status.gather` answers, with "guests" (a list of `guest_row`), "at_s" and "clock". A value that nobody
tells (an older host, a system that is not there) is drawn as "-". A screen that is too small shows what fits, and says
how much is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everram.runtime.cli.output import plural
from everram.runtime.cli.units import format_duration, format_size

if TYPE_CHECKING:
    from everram.runtime.contracts.common_pb2 import Guest

Seen = dict[str, Any]
NONE = "-"
TITLE, HEAD, PLAIN, GOOD, BAD, QUIET = "title", "head", "plain", "good", "bad", "quiet"
GAP = "  "
KEYS = "q quit"


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    mood: str = PLAIN
    """TITLE, HEAD, PLAIN, GOOD, BAD or QUIET: what a terminal makes bold, coloured or dim."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    width: int
    """At most; a longer value is cut."""
    cell: Callable[[Mapping[str, Any], Mapping[str, Any]], str]
    """From a row, and the same row when it was looked at before (empty: it was not)."""
    right: bool = False
    wide: bool = False
    """Shown only where the screen has room for it behind all the others."""


def render(seen: Seen, before: Seen | None, *, width: int, height: int) -> list[Line]:
    """At most `height` lines of at most `width` characters."""
    trouble = _trouble(seen)
    room = max(0, height - 2 - len(trouble))  # the title, and the keys
    hosts = _table(HOST_COLUMNS, _rows(seen, "hosts", "name"), _rows(before, "hosts", "name"), width)
    guests = _table(GUEST_COLUMNS, _rows(seen, "guests", "guest_id"), _rows(before, "guests", "guest_id"), width)
    if not seen["guests"]:
        guests = [Line("no guests: `everram run` starts one", QUIET)]
    hosts_room = max(min(len(hosts), room // 2), room - len(guests) - 1)
    body = _cut(hosts, hosts_room, "host")
    if room > len(body):
        body.append(Line(""))
    body += _cut(guests, room - len(body), "guest")
    ports = [_port(port) for port in seen["ports"]]
    if room - len(body) > len(ports) > 0:
        body += [Line(""), *ports]
    lines = [_title(seen, width), *body, *trouble]
    lines += [Line("")] * (height - 1 - len(lines))
    lines = [*lines[: height - 1], Line(KEYS, QUIET)]
    return [Line(line.text[:width], line.mood) for line in lines[:height]]


def guest_row(guest: Guest, state: str) -> dict[str, Any]:
    """What there is to show of a guest."""
    log, copies = guest.log, guest.copies
    synced = sum(copy.state == "in-sync" for copy in copies)
    return {
        "guest_id": guest.guest_id,
        "name": guest.name,
        "host": guest.host,
        "state": state,
        "epoch": guest.epoch,
        "tail": log.tail,
        "waiting_bytes": log.tail - log.freed,
        "log_bytes": log.capacity_bytes,
        "lag_bytes": max((log.tail - copy.durable for copy in copies), default=None),
        "copies": {copy.host: _copy_words(copy.state, copy.copied_percent) for copy in copies},
        "copies_wanted": guest.spec.copies,
        "copies_in_sync": synced,
        "degraded": guest.degraded,
        "restarts": guest.restarts,
        "reason": guest.reason,
        "freeze_reasons": list(guest.freeze_reasons),
        "regions_bytes": sum(region.size_bytes for region in guest.regions),
    }


def _copy_words(state: str, percent: int) -> str:
    return f"copying {percent}%" if state == "copying" else state


# -- lines around the tables


def _title(seen: Seen, width: int) -> Line:
    coordination = seen["coordination"]
    words = [
        f'everram "{seen["cluster"]}"',
        f"leader {seen['leader'] or NONE}",
        f"coordination {coordination['state']}",
    ]
    if coordination["restarts"]:
        words[-1] += f" ({plural(coordination['restarts'], 'restart')})"
    left, clock = GAP.join(words), seen.get("clock", "")
    return Line(f"{left}{clock:>{max(0, width - len(left))}}", TITLE)


def _port(port: Mapping[str, Any]) -> Line:
    serves = f"epoch {port['epoch']}" if port["backend_port"] else "nobody serves now"
    connections = plural(port["connections"], "connection")
    mood = PLAIN if port["backend_port"] else BAD
    return Line(f"port {port['port']}: {port['guest']}, {serves}, {connections}", mood)


def _trouble(seen: Seen) -> list[Line]:
    """Sentences, the worst of them at most three: what is not as it should be, and cannot be said in a cell."""
    said = [f"! {seen['error']}"] if seen.get("error") else []
    for host in seen["hosts"]:
        words = host.get("reason") or host.get("error") or host.get("nvm", {}).get("warning") or host.get("warning")
        if words:
            said.append(f"! {host['name']}: {words}")
    said += [f"! {guest['name']}: {guest['reason']}" for guest in seen["guests"] if guest["reason"]]
    return [Line(words, BAD) for words in said[:3]]


# -- tables


def _rows(seen: Seen | None, kind: str, key: str) -> dict[str, Mapping[str, Any]]:
    """By what names them, each with the moment at which it was seen."""
    return {str(row[key]): row | {"at_s": seen["at_s"]} for row in seen[kind]} if seen is not None else {}


def _table(
    columns: Sequence[Column],
    rows: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
    width: int,
) -> list[Line]:
    cells = [[column.cell(row, before.get(key, {})) for column in columns] for key, row in rows.items()]
    widths = [min(max(len(c.name), *(len(line[i]) for line in cells), 0), c.width) for i, c in enumerate(columns)]
    shown = _fitting(columns, widths, width)
    head = Line(GAP.join(_pad(columns[i].name, widths[i], columns[i].right) for i in shown), HEAD)
    lines = [
        Line(GAP.join(_pad(line[i], widths[i], columns[i].right) for i in shown).rstrip(), _mood(row))
        for line, row in zip(cells, rows.values(), strict=True)
    ]
    return [head, *lines]


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """The columns that fit, in their order: of the wide ones, as many as the others leave room for."""
    shown = [i for i, column in enumerate(columns) if not column.wide]
    for i, column in enumerate(columns):
        if column.wide and sum(widths[j] + len(GAP) for j in [*shown, i]) - len(GAP) <= width:
            shown.append(i)
    return sorted(shown)


def _pad(text: str, width: int, right: bool) -> str:
    text = text if len(text) <= width else f"{text[: width - 1]}~"
    return text.rjust(width) if right else text.ljust(width)


def _cut(lines: list[Line], room: int, noun: str) -> list[Line]:
    """As many as there is room for; the last says what is left out."""
    if len(lines) <= room:
        return list(lines)
    if room < 2:
        return lines[: max(0, room)]
    left_out = len(lines) - (room - 1)
    return [*lines[: room - 1], Line(f"and {plural(left_out, f'more {noun}')}: make the window larger", QUIET)]


def _mood(row: Mapping[str, Any]) -> str:
    if "epoch" in row:
        return BAD if row["state"] in GUEST_TROUBLE or row["degraded"] else PLAIN
    return BAD if "error" in row or _host_state(row, {}) != "ready" else PLAIN


GUEST_TROUBLE = ("failed", "lost", "unserved", "failing-over", "restarting")

# -- cells of hosts


def _host_state(host: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    state = str(host["host_state"] if host["state"] == "up" else host["state"])
    if host.get("cut"):
        return "cut off" if state == "ready" else f"{state}, cut"
    if host.get("mains") is False and state == "ready":
        return "on battery"
    return ", ".join(host.get("faults", ())) or state if state == "ready" else state


def _nvm(host: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    nvm = host.get("nvm")
    if nvm is None:
        return NONE
    waiting = f" {nvm['waiting_writers']}!" if nvm.get("waiting_writers") else ""
    return f"{format_size(nvm['allocated_bytes'])}/{format_size(nvm['capacity_bytes'])}{waiting}"


def _dirty(host: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What may still have to be saved, against the most of it that there may be."""
    dirty = host.get("dirty")
    if not dirty:
        return NONE
    return f"{format_size(dirty['bytes'])}/{format_size(dirty['cap_bytes'])}"


def _lease(host: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    lease = host.get("lease")
    if lease is None:
        return NONE
    return format_duration(lease["remaining_s"]) if lease["held"] else "none"


def _links(host: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """How many links are up, or which ones are not."""
    links = host.get("links")
    if links is None:
        return NONE
    bad = [f"{peer} {state}" for peer, state in links.items() if state not in ("up", "idle")]
    return ", ".join(bad) or f"{sum(state == 'up' for state in links.values())} up"


def _battery(host: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    return format_duration(host["battery_s"]) if host.get("battery_s") else NONE


def _up(host: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    return format_duration(host["uptime_s"]) if "uptime_s" in host else NONE


def _memory(host: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    memory = host.get("memory")
    return f"{format_size(memory['allocated_bytes'])}/{format_size(memory['capacity_bytes'])}" if memory else NONE


HOST_COLUMNS = (
    Column("HOST", 10, lambda host, _: str(host["name"])),
    Column("STATE", 12, _host_state),
    Column("GUESTS", 6, lambda host, _: str(host.get("guests", NONE)), right=True),
    Column("NVM", 18, _nvm, right=True),
    Column("DIRTY/CAP", 16, _dirty, right=True),
    Column("LEASE", 6, _lease, right=True),
    Column("LINKS", 20, _links),
    Column("PRESSURE", 8, lambda host, _: str(host.get("pressure") or NONE), wide=True),
    Column("MEMORY", 16, _memory, right=True, wide=True),
    Column("BATTERY", 8, _battery, right=True, wide=True),
    Column("RESTARTS", 8, lambda host, _: str(host["host_restarts"]), right=True, wide=True),
    Column("UP", 7, _up, right=True, wide=True),
)

# -- cells of guests


def _rate(guest: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Of the log, between the two looks."""
    took_s = guest["at_s"] - before["at_s"] if before else 0
    if took_s <= 0 or before["epoch"] != guest["epoch"]:
        return NONE
    return f"{format_size(int((guest['tail'] - before['tail']) / took_s))}/s"


def _lag(guest: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    return NONE if guest["lag_bytes"] is None else format_size(max(0, guest["lag_bytes"]))


def _log(guest: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """How full the ring is."""
    return f"{100 * guest['waiting_bytes'] // guest['log_bytes']}%" if guest["log_bytes"] else NONE


def _copies(guest: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    known = [f"{host} {state}" for host, state in guest["copies"].items()]
    if not known:
        return f"none of {guest['copies_wanted']}" if guest["copies_wanted"] else NONE
    return ", ".join(known)


def _swapped(guest: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Of its volatile memory."""
    return NONE if guest.get("swapped_bytes") is None else format_size(guest["swapped_bytes"])


def _guest_state(guest: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    reasons = ",".join(guest["freeze_reasons"])
    return f"{guest['state']}:{reasons}" if reasons else str(guest["state"])


GUEST_COLUMNS = (
    Column("GUEST", 12, lambda guest, _: str(guest["name"])),
    Column("HOST", 6, lambda guest, _: str(guest["host"] or NONE)),
    Column("STATE", 14, _guest_state),
    Column("EPOCH", 5, lambda guest, _: str(guest["epoch"]), right=True),
    Column("COMMITS", 11, _rate, right=True),
    Column("LOG", 4, _log, right=True),
    Column("LAG", 8, _lag, right=True),
    Column("COPIES", 26, _copies),
    Column("SWAPPED", 8, _swapped, right=True, wide=True),
    Column("REGIONS", 8, lambda guest, _: format_size(guest["regions_bytes"]), right=True, wide=True),
    Column("RESTARTS", 8, lambda guest, _: str(guest["restarts"]), right=True, wide=True),
)
