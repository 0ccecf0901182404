"""Commands that read and change values: SET, GET, INCR, APPEND and their kin."""

from __future__ import annotations

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
from everram.examples.keyvalue.resp import OK, ONE, ZERO, array, bulk, integer
from everram.examples.keyvalue.store import Store, TooLarge


@command("GET", 2, keys=(1, 1, 1))
def _get(session: Session, request: Arguments) -> bytes:
    value = session.store.get(request[1])
    return session.null if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


@command("SET", 3, MANY, writes=True, keys=(1, 1, 1))
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
            self.expires_ms = deadline_ms(deadline[1], deadline[0], now_ms, "set")


def deadline_ms(word: bytes, unit: bytes, now_ms: int, command: str) -> int:
    """When an entry expires that gets this time to live; always later than the beginning of 1970."""
    number = parse_integer(word)
    deadline_ms = number * (1 if unit.startswith(b"P") else 1000) + (0 if unit.endswith(b"AT") else now_ms)
    if number <= 0 or deadline_ms > INT_MAX:
        raise Refused(f"ERR invalid expire time in '{command}' command")
    return deadline_ms


@command("SETEX PSETEX", 4, writes=True, keys=(1, 1, 1))
def _setex(session: Session, request: Arguments) -> bytes:
    name = request[0].lower()
    unit = b"PX" if name == b"psetex" else b"EX"
    session.store.set(request[1], request[3], deadline_ms(request[2], unit, session.store.now_ms, text(name)))
    return OK


@command("SETNX", 3, writes=True, keys=(1, 1, 1))
def _setnx(session: Session, request: Arguments) -> bytes:
    if request[1] in session.store:
        return ZERO
    session.store.set(request[1], request[2])
    return ONE


@command("GETSET", 3, writes=True, keys=(1, 1, 1))
def _getset(session: Session, request: Arguments) -> bytes:
    old = session.store.get(request[1])
    session.store.set(request[1], request[2])
    return session.bulk(old)


@command("MGET", 2, MANY, keys=(1, -1, 1))
def _mget(session: Session, request: Arguments) -> bytes:
    return array(session.bulk(session.store.get(key)) for key in request[1:])


@command("MSET", 3, MANY, writes=True, keys=(1, -1, 2))
def _mset(session: Session, request: Arguments) -> bytes:
    if len(request) % 2 == 0:
        raise Refused("ERR wrong number of arguments for 'mset' command")
    session.store.set_all(zip(request[1::2], request[2::2], strict=True))
    return OK


@command("STRLEN", 2, keys=(1, 1, 1))
def _strlen(session: Session, request: Arguments) -> bytes:
    return integer(session.store.length(request[1]))


@command("APPEND", 3, writes=True, keys=(1, 1, 1))
def _append(session: Session, request: Arguments) -> bytes:
    old, expires_ms = session.store.get_entry(request[1])
    value = (old or b"") + request[2]
    session.store.set(request[1], value, expires_ms)
    return integer(len(value))


@command("GETRANGE SUBSTR", 4, keys=(1, 1, 1))
def _getrange(session: Session, request: Arguments) -> bytes:
    start, end = parse_integer(request[2]), parse_integer(request[3])
    value = session.store.get(request[1]) or b""
    if start < 0 and end < 0 and start > end:
        return bulk(b"")
    start = max(0, start + len(value)) if start < 0 else start
    end = max(0, end + len(value)) if end < 0 else end
    return bulk(value[start : end + 1])


@command("SETRANGE", 4, writes=True, keys=(1, 1, 1))
def _setrange(session: Session, request: Arguments) -> bytes:
    store, key, part = session.store, request[1], request[3]
    offset = parse_integer(request[2])
    if offset < 0:
        raise Refused("ERR offset is out of range")
    if not part:
        return integer(store.length(key))
    if offset + len(part) + len(key) > store.entry_bytes_max:
        raise TooLarge
    value, expires_ms = store.get_entry(key)
    old = (value or b"").ljust(offset, b"\0")
    value = old[:offset] + part + old[offset + len(part) :]
    store.set(key, value, expires_ms)
    return integer(len(value))


@command("INCR", 2, writes=True, keys=(1, 1, 1))
def _incr(session: Session, request: Arguments) -> bytes:
    return _add(session.store, request[1], 1)


@command("DECR", 2, writes=True, keys=(1, 1, 1))
def _decr(session: Session, request: Arguments) -> bytes:
    return _add(session.store, request[1], -1)


@command("INCRBY", 3, writes=True, keys=(1, 1, 1))
def _incrby(session: Session, request: Arguments) -> bytes:
    return _add(session.store, request[1], parse_integer(request[2]))


@command("DECRBY", 3, writes=True, keys=(1, 1, 1))
def _decrby(session: Session, request: Arguments) -> bytes:
    number = parse_integer(request[2])
    if number == INT_MIN:
        raise Refused("ERR decrement would overflow")
    return _add(session.store, request[1], -number)


def _add(store: Store, key: bytes, number: int) -> bytes:
    old, expires_ms = store.get_entry(key)
    total = (0 if old is None else parse_integer(old)) + number
    if not INT_MIN <= total <= INT_MAX:
        raise Refused("ERR increment or decrement would overflow")
    store.set(key, b"%d" % total, expires_ms)
    return integer(total)
