"""Commands about keys, whatever their values: DEL, EXPIRE, TTL, KEYS, SCAN, FLUSHALL and their kin."""

from __future__ import annotations

from collections.abc import Iterable

from everram.examples.keyvalue import glob
from everram.examples.keyvalue.registry import (
    INT_MAX,
    INT_MIN,
    MANY,
    SYNTAX,
    Arguments,
    Refused,
    Session,
    command,
    parse_integer,
    text,
)
from everram.examples.keyvalue.resp import OK, ONE, ZERO, array, bulk, bulks, integer


@command("DEL UNLINK", 2, MANY, writes=True, keys=(1, -1, 1))
def _del(session: Session, request: Arguments) -> bytes:
    deleted = 0
    for key in request[1:]:
        session.store.make_room()
        deleted += session.store.delete(key)
    return integer(deleted)


@command("EXISTS", 2, MANY, keys=(1, -1, 1))
def _exists(session: Session, request: Arguments) -> bytes:
    return integer(sum(key in session.store for key in request[1:]))


@command("TYPE", 2, keys=(1, 1, 1))
def _type(session: Session, request: Arguments) -> bytes:
    return b"+string\r\n" if request[1] in session.store else b"+none\r\n"


@command("EXPIRE PEXPIRE EXPIREAT PEXPIREAT", 3, 5, writes=True, keys=(1, 1, 1))
def _expire(session: Session, request: Arguments) -> bytes:
    store, name, key = session.store, request[0].upper(), request[1]
    options = _expire_options(request[3:])
    number = parse_integer(request[2])
    expires_ms = number * (1 if name.startswith(b"P") else 1000) + (0 if name.endswith(b"AT") else store.now_ms)
    if not INT_MIN <= expires_ms <= INT_MAX:
        raise Refused(f"ERR invalid expire time in '{text(name.lower())}' command")
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
        raise Refused(f"ERR Unsupported option {text(min(unknown))}")
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


@command("TTL PTTL", 2, keys=(1, 1, 1))
def _ttl(session: Session, request: Arguments) -> bytes:
    expires_ms = session.store.expires_ms(request[1])
    if not expires_ms:
        return integer(-2 if expires_ms is None else -1)
    left_ms = expires_ms - session.store.now_ms
    return integer(left_ms if request[0][:1] in b"pP" else (left_ms + 500) // 1000)


@command("PERSIST", 2, writes=True, keys=(1, 1, 1))
def _persist(session: Session, request: Arguments) -> bytes:
    if not session.store.expires_ms(request[1]):
        return ZERO
    session.store.set_expiry(request[1], 0)
    return ONE


@command("KEYS", 2)
def _keys(session: Session, request: Arguments) -> bytes:
    return bulks(_matching(session.store.keys(), request[1]))


def _matching(keys: Iterable[bytes], pattern: bytes) -> Iterable[bytes]:
    matches = glob.compile_pattern(pattern)
    return keys if matches is None else filter(matches, keys)


@command("SCAN", 2, MANY)
def _scan(session: Session, request: Arguments) -> bytes:
    cursor = parse_integer(request[1], "ERR invalid cursor")
    if cursor < 0:
        raise Refused("ERR invalid cursor")
    count, pattern, of_type = 10, b"*", b"string"
    options = iter(request[2:])
    for word in options:
        value = next(options, None)
        match word.upper():
            case b"COUNT" if value is not None:
                count = parse_integer(value)
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


@command("DBSIZE", 1)
def _dbsize(session: Session, request: Arguments) -> bytes:
    return integer(len(session.store))


@command("FLUSHDB FLUSHALL", 1, 2, writes=True)
def _flush(session: Session, request: Arguments) -> bytes:
    if len(request) == 2 and request[1].upper() not in (b"SYNC", b"ASYNC"):
        raise Refused(SYNTAX)
    session.store.clear()
    return OK
