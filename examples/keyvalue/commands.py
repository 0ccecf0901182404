"""What each command of Redis does to a store, and what it answers, in Redis's own words.

    answer = run(session, [b"SET", b"key", b"value"])

Whatever a request is, it gets an answer; only what concerns the whole server (LogFull, Fenced) is raised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from everram.examples.keyvalue import glob
from everram.examples.keyvalue.heap import Full
from everram.examples.keyvalue.resp import NULL, NULL_3, OK, ONE, ZERO, array, bulk, bulks, error, integer, mapping
from everram.examples.keyvalue.store import Store, TooLarge

REDIS_VERSION = "7.0.0"
"""Of the behaviour that clients may expect."""
INT_MIN, INT_MAX = -(2**63), 2**63 - 1
STRING_BYTES_MAX = 512 * 1024 * 1024
DEADLINE_MS_MAX = INT_MAX
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")

OUT_OF_MEMORY = error("OOM command not allowed when used memory > 'maxmemory'.")
TOO_LARGE = error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
TOO_MANY = error(
    "ERR more than one transaction of the log holds: send less at once, or run the server with a larger --log"
)
NOT_AN_INTEGER = "ERR value is not an integer or out of range"
SYNTAX = "ERR syntax error"

Arguments = list[bytes]


class Refused(Exception):
    """The command cannot be done; the message is the answer, its code first."""


class Session:
    """What a client's commands work on."""

    def __init__(self, store: Store, client_id: int, about: dict[str, dict[str, object]]) -> None:
        self.store = store
        self.client_id = client_id
        self.about = about
        """For INFO: sections and their fields. Those of the store itself are added."""
        self.name = b""
        self.protocol = 2
        self.null = NULL
        self.ended = False
        """QUIT was said."""

    def bulk(self, value: bytes | None) -> bytes:
        return self.null if value is None else bulk(value)


class Command(NamedTuple):
    do: Callable[[Session, Arguments], bytes]
    arguments_min: int
    """The command's name counts."""
    arguments_max: int
    writes: bool
    keys: tuple[int, int, int]
    """First key, last key, step, as COMMAND tells them."""

    @property
    def arity(self) -> int:
        return self.arguments_min if self.arguments_min == self.arguments_max else -self.arguments_min


COMMANDS: dict[bytes, Command] = {}
"""By name, in capitals and in small letters."""
_MANY = 1 << 30
_Handler = Callable[[Session, Arguments], bytes]


def _command(
    names: str, least: int, most: int = 0, *, writes: bool = False, keys: tuple[int, int, int] = (0, 0, 0)
) -> Callable[[_Handler], _Handler]:
    """Register a handler; `most` 0: as many as `least`."""

    def register(handler: _Handler) -> _Handler:
        for name in names.split():
            found = Command(handler, least, most or least, writes, keys)
            COMMANDS[name.encode()] = COMMANDS[name.lower().encode()] = found
        return handler

    return register


def run(session: Session, request: Arguments) -> bytes:
    """The answer to a request. Raises LogFull, Fenced."""
    name = request[0]
    command = COMMANDS.get(name) or COMMANDS.get(name.upper())
    if command is None:
        return _unknown(request)
    if not command.arguments_min <= len(request) <= command.arguments_max:
        return error(f"ERR wrong number of arguments for '{_text(name.lower())}' command")
    try:
        return command.do(session, request)
    except Refused as refused:
        return error(str(refused))
    except Full:
        return OUT_OF_MEMORY
    except TooLarge:
        return TOO_MANY if command.keys[2] == 2 else TOO_LARGE


def _unknown(request: Arguments) -> bytes:
    name, *arguments = (_text(word[:128].split(b"\0")[0]) for word in request[:20])
    begin = "".join(f"'{argument}' " for argument in arguments)[:128]
    return error(f"ERR unknown command '{name}', with args beginning with: {begin}")


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _integer(word: bytes, complaint: str = NOT_AN_INTEGER) -> int:
    """A number in its one spelling, as Redis keeps them."""
    if _INTEGER.fullmatch(word) and INT_MIN <= (number := int(word)) <= INT_MAX:
        return number
    raise Refused(complaint)


# -- connection


@_command("PING", 1, 2)
def _ping(session: Session, request: Arguments) -> bytes:
    return b"+PONG\r\n" if len(request) == 1 else bulk(request[1])


@_command("ECHO", 2)
def _echo(session: Session, request: Arguments) -> bytes:
    return bulk(request[1])


@_command("QUIT", 1, _MANY)
def _quit(session: Session, request: Arguments) -> bytes:
    session.ended = True
    return OK


@_command("SELECT", 2)
def _select(session: Session, request: Arguments) -> bytes:
    if _integer(request[1]):
        raise Refused("ERR DB index is out of range")
    return OK


@_command("HELLO", 1, _MANY)
def _hello(session: Session, request: Arguments) -> bytes:
    protocol = session.protocol
    if len(request) > 1:
        protocol = _integer(request[1], "ERR Protocol version is not an integer or out of range")
    if protocol not in (2, 3):
        raise Refused("NOPROTO unsupported protocol version")
    options = request[2:]
    while options:
        match options[0].upper():
            case b"SETNAME" if len(options) > 1:
                _set_name(session, options[1])
                options = options[2:]
            case b"AUTH" if len(options) > 2:
                raise Refused(_NO_PASSWORD)
            case _:
                raise Refused(f"ERR Syntax error in HELLO option '{_text(options[0])}'")
    session.protocol, session.null = protocol, NULL_3 if protocol == 3 else NULL
    fields = {"server": "redis", "version": REDIS_VERSION, "proto": protocol, "id": session.client_id}
    fields |= {"mode": "standalone", "role": "master"}
    written = [part for key, value in fields.items() for part in (bulk(key.encode()), _value(value))]
    return mapping([*written, bulk(b"modules"), array(())], protocol)


_NO_PASSWORD = (
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?"
)


def _value(value: object) -> bytes:
    return integer(value) if isinstance(value, int) else bulk(str(value).encode())


@_command("AUTH", 2, 3)
def _auth(session: Session, request: Arguments) -> bytes:
    raise Refused(_NO_PASSWORD)


@_command("CLIENT", 2, _MANY)
def _client(session: Session, request: Arguments) -> bytes:
    match [request[1].upper(), *request[2:]]:
        case [b"SETNAME", name]:
            _set_name(session, name)
            return OK
        case [b"SETINFO", option, _]:
            if option.lower() not in (b"lib-name", b"lib-ver"):
                raise Refused(f"ERR Unrecognized option '{_text(option)}'")
            return OK
        case [b"GETNAME"]:
            return session.bulk(session.name or None)
        case [b"ID"]:
            return integer(session.client_id)
    raise _bad_subcommand(request)


def _set_name(session: Session, name: bytes) -> None:
    if any(not 33 <= letter <= 126 for letter in name):
        raise Refused("ERR Client names cannot contain spaces, newlines or special characters.")
    session.name = name


def _bad_subcommand(request: Arguments) -> Refused:
    name = _text(request[0].upper())
    return Refused(f"ERR unknown subcommand or wrong number of arguments for '{_text(request[1])}'. Try {name} HELP.")


# -- strings


@_command("GET", 2, keys=(1, 1, 1))
def _get(session: Session, request: Arguments) -> bytes:
    value = session.store.get(request[1])
    return session.null if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


@_command("SET", 3, _MANY, writes=True, keys=(1, 1, 1))
def _set(session: Session, request: Arguments) -> bytes:
    store, key, value = session.store, request[1], request[2]
    if len(request) == 3:
        store.set(key, value)
        return OK
    options = _SetOptions(request[3:], store.now_ms)
    old = store.get(key) if options.get else None
    if options.only_if is not None and (key in store) is not options.only_if:
        return session.bulk(old) if options.get else session.null
    expires_ms = (store.expires_ms(key) or 0) if options.keep_ttl else options.expires_ms
    store.set(key, value, expires_ms)
    if options.expires_ms and options.expires_ms <= store.now_ms:
        store.delete(key)
    return session.bulk(old) if options.get else OK


class _SetOptions:
    """What may follow in a SET."""

    def __init__(self, words: Arguments, now_ms: int) -> None:
        self.only_if: bool | None = None
        """Whether the key has to be there, if that matters."""
        self.get = self.keep_ttl = False
        self.expires_ms = 0
        deadline: tuple[bytes, bytes] | None = None
        rest = iter(words)
        for word in rest:
            match word.upper():
                case b"NX" if self.only_if is not True:
                    self.only_if = False
                case b"XX" if self.only_if is not False:
                    self.only_if = True
                case b"GET":
                    self.get = True
                case b"KEEPTTL" if deadline is None:
                    self.keep_ttl = True
                case b"EX" | b"PX" | b"EXAT" | b"PXAT" as unit if not self.keep_ttl:
                    number = next(rest, None)
                    if number is None or (deadline is not None and deadline[0] != unit):
                        raise Refused(SYNTAX)
                    deadline = unit, number
                case _:
                    raise Refused(SYNTAX)
        if deadline is not None:
            self.expires_ms = _deadline_ms(deadline[1], deadline[0], now_ms, "set")


def _deadline_ms(word: bytes, unit: bytes, now_ms: int, command: str) -> int:
    """When an entry expires that gets this time to live; always later than the beginning of 1970."""
    number = _integer(word)
    deadline_ms = number * (1 if unit.startswith(b"P") else 1000) + (0 if unit.endswith(b"AT") else now_ms)
    if number <= 0 or deadline_ms > DEADLINE_MS_MAX:
        raise Refused(f"ERR invalid expire time in '{command}' command")
    return deadline_ms


@_command("SETEX PSETEX", 4, writes=True, keys=(1, 1, 1))
def _setex(session: Session, request: Arguments) -> bytes:
    name = request[0].lower()
    unit = b"PX" if name == b"psetex" else b"EX"
    session.store.set(request[1], request[3], _deadline_ms(request[2], unit, session.store.now_ms, _text(name)))
    return OK


@_command("SETNX", 3, writes=True, keys=(1, 1, 1))
def _setnx(session: Session, request: Arguments) -> bytes:
    if request[1] in session.store:
        return ZERO
    session.store.set(request[1], request[2])
    return ONE


@_command("GETSET", 3, writes=True, keys=(1, 1, 1))
def _getset(session: Session, request: Arguments) -> bytes:
    old = session.store.get(request[1])
    session.store.set(request[1], request[2])
    return session.bulk(old)


@_command("MGET", 2, _MANY, keys=(1, -1, 1))
def _mget(session: Session, request: Arguments) -> bytes:
    return array(session.bulk(session.store.get(key)) for key in request[1:])


@_command("MSET", 3, _MANY, writes=True, keys=(1, -1, 2))
def _mset(session: Session, request: Arguments) -> bytes:
    if len(request) % 2 == 0:
        raise Refused("ERR wrong number of arguments for 'mset' command")
    session.store.set_all(zip(request[1::2], request[2::2], strict=True))
    return OK


@_command("STRLEN", 2, keys=(1, 1, 1))
def _strlen(session: Session, request: Arguments) -> bytes:
    return integer(session.store.length(request[1]))


@_command("APPEND", 3, writes=True, keys=(1, 1, 1))
def _append(session: Session, request: Arguments) -> bytes:
    old, expires_ms = session.store.get_entry(request[1])
    value = (old or b"") + request[2]
    session.store.set(request[1], value, expires_ms)
    return integer(len(value))


@_command("GETRANGE SUBSTR", 4, keys=(1, 1, 1))
def _getrange(session: Session, request: Arguments) -> bytes:
    start, end = _integer(request[2]), _integer(request[3])
    value = session.store.get(request[1]) or b""
    if start < 0 and end < 0 and start > end:
        return bulk(b"")
    start = max(0, start + len(value)) if start < 0 else start
    end = max(0, end + len(value)) if end < 0 else end
    return bulk(value[start : end + 1])


@_command("SETRANGE", 4, writes=True, keys=(1, 1, 1))
def _setrange(session: Session, request: Arguments) -> bytes:
    store, key, part = session.store, request[1], request[3]
    offset = _integer(request[2])
    if offset < 0:
        raise Refused("ERR offset is out of range")
    if not part:
        return integer(store.length(key))
    if offset + len(part) + len(key) > store.entry_bytes_max:
        return TOO_LARGE
    value, expires_ms = store.get_entry(key)
    old = (value or b"").ljust(offset, b"\0")
    value = old[:offset] + part + old[offset + len(part) :]
    store.set(key, value, expires_ms)
    return integer(len(value))


@_command("INCR", 2, writes=True, keys=(1, 1, 1))
def _incr(session: Session, request: Arguments) -> bytes:
    return _add(session.store, request[1], 1)


@_command("DECR", 2, writes=True, keys=(1, 1, 1))
def _decr(session: Session, request: Arguments) -> bytes:
    return _add(session.store, request[1], -1)


@_command("INCRBY", 3, writes=True, keys=(1, 1, 1))
def _incrby(session: Session, request: Arguments) -> bytes:
    return _add(session.store, request[1], _integer(request[2]))


@_command("DECRBY", 3, writes=True, keys=(1, 1, 1))
def _decrby(session: Session, request: Arguments) -> bytes:
    number = _integer(request[2])
    if number == INT_MIN:
        raise Refused("ERR decrement would overflow")
    return _add(session.store, request[1], -number)


def _add(store: Store, key: bytes, number: int) -> bytes:
    old, expires_ms = store.get_entry(key)
    total = (0 if old is None else _integer(old)) + number
    if not INT_MIN <= total <= INT_MAX:
        raise Refused("ERR increment or decrement would overflow")
    store.set(key, b"%d" % total, expires_ms)
    return integer(total)


# -- keys


@_command("DEL UNLINK", 2, _MANY, writes=True, keys=(1, -1, 1))
def _del(session: Session, request: Arguments) -> bytes:
    deleted = 0
    for key in request[1:]:
        session.store.make_room()
        deleted += session.store.delete(key)
    return integer(deleted)


@_command("EXISTS", 2, _MANY, keys=(1, -1, 1))
def _exists(session: Session, request: Arguments) -> bytes:
    return integer(sum(key in session.store for key in request[1:]))


@_command("TYPE", 2, keys=(1, 1, 1))
def _type(session: Session, request: Arguments) -> bytes:
    return b"+string\r\n" if request[1] in session.store else b"+none\r\n"


@_command("EXPIRE PEXPIRE EXPIREAT PEXPIREAT", 3, 5, writes=True, keys=(1, 1, 1))
def _expire(session: Session, request: Arguments) -> bytes:
    store, name, key = session.store, request[0].upper(), request[1]
    options = _expire_options(request[3:])
    number = _integer(request[2])
    expires_ms = number * (1 if name.startswith(b"P") else 1000) + (0 if name.endswith(b"AT") else store.now_ms)
    if not INT_MIN <= expires_ms <= DEADLINE_MS_MAX:
        raise Refused(f"ERR invalid expire time in '{_text(name.lower())}' command")
    old_ms = store.expires_ms(key)
    if old_ms is None or not _may_expire(options, old_ms, expires_ms):
        return ZERO
    if expires_ms <= store.now_ms:
        store.delete(key)
    else:
        store.set_expiry(key, expires_ms)
    return ONE


def _expire_options(words: Arguments) -> set[bytes]:
    options = {word.upper() for word in words}
    if unknown := options - {b"NX", b"XX", b"GT", b"LT"}:
        raise Refused(f"ERR Unsupported option {_text(min(unknown))}")
    if b"NX" in options and len(options) > 1:
        raise Refused("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= options:
        raise Refused("ERR GT and LT options at the same time are not compatible")
    return options


def _may_expire(options: set[bytes], old_ms: int, new_ms: int) -> bool:
    """An entry that does not expire counts as one that does so at the end of time."""
    if (b"NX" in options and old_ms) or (b"XX" in options and not old_ms):
        return False
    old_ms = old_ms or INT_MAX + 1
    return not (b"GT" in options and new_ms <= old_ms) and not (b"LT" in options and new_ms >= old_ms)


@_command("TTL PTTL", 2, keys=(1, 1, 1))
def _ttl(session: Session, request: Arguments) -> bytes:
    expires_ms = session.store.expires_ms(request[1])
    if not expires_ms:
        return integer(-2 if expires_ms is None else -1)
    left_ms = expires_ms - session.store.now_ms
    return integer(left_ms if request[0][:1] in b"pP" else (left_ms + 500) // 1000)


@_command("PERSIST", 2, writes=True, keys=(1, 1, 1))
def _persist(session: Session, request: Arguments) -> bytes:
    if not session.store.expires_ms(request[1]):
        return ZERO
    session.store.set_expiry(request[1], 0)
    return ONE


@_command("KEYS", 2)
def _keys(session: Session, request: Arguments) -> bytes:
    return bulks(_matching(session.store.keys(), request[1]))


def _matching(keys: Iterable[bytes], pattern: bytes) -> Iterable[bytes]:
    matches = glob.compile_pattern(pattern)
    return keys if matches is None else filter(matches, keys)


@_command("SCAN", 2, _MANY)
def _scan(session: Session, request: Arguments) -> bytes:
    cursor = _integer(request[1], "ERR invalid cursor")
    if cursor < 0:
        raise Refused("ERR invalid cursor")
    count, pattern, of_type = 10, b"*", b"string"
    options = iter(request[2:])
    for word in options:
        value = next(options, None)
        match word.upper():
            case b"COUNT" if value is not None:
                count = _integer(value)
                if count < 1:
                    raise Refused(SYNTAX)
            case b"MATCH" if value is not None:
                pattern = value
            case b"TYPE" if value is not None:
                of_type = value.lower()
            case _:
                raise Refused(SYNTAX)
    cursor, keys = session.store.scan(cursor, count)
    found = _matching(keys, pattern) if of_type == b"string" else ()
    return array((bulk(b"%d" % cursor), bulks(found)))


@_command("DBSIZE", 1)
def _dbsize(session: Session, request: Arguments) -> bytes:
    return integer(len(session.store))


@_command("FLUSHDB FLUSHALL", 1, 2, writes=True)
def _flush(session: Session, request: Arguments) -> bytes:
    if len(request) == 2 and request[1].upper() not in (b"SYNC", b"ASYNC"):
        raise Refused(SYNTAX)
    session.store.clear()
    return OK


# -- server


@_command("INFO", 1, _MANY)
def _info(session: Session, request: Arguments) -> bytes:
    store = session.store
    size_bytes = store.heap.region.size_bytes
    sections = session.about | {
        "Memory": {"used_memory": store.used_bytes, "maxmemory": size_bytes, "maxmemory_policy": "noeviction"},
        "Keyspace": {"db0": f"keys={len(store)},expires={store.heap.expiring},avg_ttl=0"} if len(store) else {},
    }
    wanted = {word.lower() for word in request[1:]}
    every = not wanted or wanted & {b"all", b"default", b"everything"}
    lines = []
    for section, fields in sections.items():
        if every or section.lower().encode() in wanted:
            lines += [f"# {section}", *(f"{key}:{value}" for key, value in fields.items()), ""]
    return bulk("\r\n".join(lines).encode())


@_command("CONFIG", 2, _MANY)
def _config(session: Session, request: Arguments) -> bytes:
    if request[1].upper() == b"RESETSTAT" and len(request) == 2:
        return OK
    if request[1].upper() != b"GET" or len(request) < 3:
        raise _bad_subcommand(request)
    store = session.store
    settings = {
        b"save": b"",
        b"appendonly": b"no",
        b"databases": b"1",
        b"maxmemory": b"%d" % store.heap.region.size_bytes,
        b"maxmemory-policy": b"noeviction",
        b"proto-max-bulk-len": b"%d" % store.entry_bytes_max,
    }
    wanted = [glob.compile_pattern(pattern.lower()) for pattern in request[2:]]
    found = {key: value for key, value in settings.items() if any(m is None or m(key) for m in wanted)}
    return mapping((bulk(part) for item in found.items() for part in item), session.protocol)


@_command("COMMAND", 1, _MANY)
def _commands(session: Session, request: Arguments) -> bytes:
    every = [name for name in COMMANDS if name.islower()]
    match [request[1].upper(), *request[2:]] if len(request) > 1 else []:
        case []:
            return array(map(_described, every))
        case [b"COUNT"]:
            return integer(len(every))
        case [b"LIST"]:
            return bulks(every)
        case [b"INFO", *names]:
            return array(map(_described, names or every))
        case [b"DOCS", *names]:
            known = [name.lower() for name in names if name.lower() in COMMANDS] if names else every
            parts = (part for name in known for part in (bulk(name), _documented(name, session.protocol)))
            return mapping(parts, session.protocol)
    raise _bad_subcommand(request)


def _described(name: bytes) -> bytes:
    command = COMMANDS.get(name.lower())
    if command is None:
        return b"*-1\r\n"
    flag = b"+write\r\n" if command.writes else b"+readonly\r\n"
    numbers = map(integer, command.keys)
    empty = array(())
    return array((bulk(name.lower()), integer(command.arity), array((flag,)), *numbers, empty, empty, empty, empty))


def _documented(name: bytes, protocol: int) -> bytes:
    group = b"string" if COMMANDS[name].keys[0] else b"server"
    return mapping(map(bulk, (b"summary", b"As in Redis 7.0", b"since", b"1.0.0", b"group", group)), protocol)
