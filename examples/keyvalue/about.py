"""Commands about the connection and the server: PING, HELLO, CLIENT, INFO, CONFIG, COMMAND and their kin."""

from __future__ import annotations

from everram.examples.keyvalue import glob
from everram.examples.keyvalue.registry import (
    COMMANDS,
    MANY,
    REDIS_VERSION,
    Arguments,
    Refused,
    Session,
    command,
    parse_integer,
    text,
)
from everram.examples.keyvalue.resp import NULL, NULL_3, OK, array, bulk, bulks, integer, mapping


@command("PING", 1, 2)
def _ping(session: Session, request: Arguments) -> bytes:
    return b"+PONG\r\n" if len(request) == 1 else bulk(request[1])


@command("ECHO", 2)
def _echo(session: Session, request: Arguments) -> bytes:
    return bulk(request[1])


@command("QUIT", 1, MANY)
def _quit(session: Session, request: Arguments) -> bytes:
    session.ended = True
    return OK


@command("SELECT", 2)
def _select(session: Session, request: Arguments) -> bytes:
    if parse_integer(request[1]):
        raise Refused("ERR DB index is out of range")
    return OK


@command("HELLO", 1, MANY)
def _hello(session: Session, request: Arguments) -> bytes:
    protocol = session.protocol
    if len(request) > 1:
        protocol = parse_integer(request[1], "ERR Protocol version is not an integer or out of range")
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
                raise Refused(f"ERR Syntax error in HELLO option '{text(options[0])}'")
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


@command("AUTH", 2, 3)
def _auth(session: Session, request: Arguments) -> bytes:
    raise Refused(_NO_PASSWORD)


@command("CLIENT", 2, MANY)
def _client(session: Session, request: Arguments) -> bytes:
    match [request[1].upper(), *request[2:]]:
        case [b"SETNAME", name]:
            _set_name(session, name)
            return OK
        case [b"SETINFO", option, _]:
            if option.lower() not in (b"lib-name", b"lib-ver"):
                raise Refused(f"ERR Unrecognized option '{text(option)}'")
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
    name = text(request[0].upper())
    return Refused(f"ERR unknown subcommand or wrong number of arguments for '{text(request[1])}'. Try {name} HELP.")


@command("INFO", 1, MANY)
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


@command("CONFIG", 2, MANY)
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


@command("COMMAND", 1, MANY)
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
