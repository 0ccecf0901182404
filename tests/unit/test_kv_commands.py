"""What the commands of examples/kv.py answer: Redis's own words (tests/process/test_kv.py holds them against Redis)."""

from __future__ import annotations

import pytest

from everram.examples.keyvalue.commands import COMMANDS, Session, run
from everram.examples.keyvalue.store import Store
from everram.runtime.guest import Guest
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.region import Region
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring
from everram.runtime.memory.heap import HeapMapping

GUEST_ID = "0123456789abcdef"
NOW_MS = 1_700_000_000_000
OK, NULL = b"+OK\r\n", b"$-1\r\n"
NOT_AN_INTEGER = b"-ERR value is not an integer or out of range\r\n"


def session(region_bytes: int = 64 * 1024) -> Session:
    ring = Ring.format(
        HeapMapping(Ring.total_bytes(MIN_CAPACITY_BYTES)), guest_id=GUEST_ID, epoch=1, capacity_bytes=MIN_CAPACITY_BYTES
    )
    region = Region("kv", 0, "logged", HeapMapping(region_bytes), region_bytes)
    core = GuestCore(guest_id=GUEST_ID, name="kv", epoch=1, ring=ring, regions=[region], now_ns=lambda: 1)
    store = Store(Guest(core).begin, region, MIN_CAPACITY_BYTES // 2 - 256)
    store.now_ms = NOW_MS
    return Session(store, 7, {"Server": {"redis_version": "7.0.0"}})


def say(client: Session, line: str) -> bytes:
    """A request of words without blanks; `_` is an empty one."""
    return run(client, [b"" if word == "_" else word.encode() for word in line.split()])


@pytest.mark.parametrize(
    ("lines", "last"),
    [
        (["PING"], b"+PONG\r\n"),
        (["ping hello"], b"$5\r\nhello\r\n"),
        (["SET k v", "get k"], b"$1\r\nv\r\n"),
        (["SET k v", "SET k w NX"], NULL),
        (["SET k v XX"], NULL),
        (["SET k v", "SET k w XX GET"], b"$1\r\nv\r\n"),
        (["SET k v NX XX"], b"-ERR syntax error\r\n"),
        (["SET k v EX"], b"-ERR syntax error\r\n"),
        (["SET k v EX 1 KEEPTTL"], b"-ERR syntax error\r\n"),
        (["SET k v EX x"], NOT_AN_INTEGER),
        (["SET k v EX 0"], b"-ERR invalid expire time in 'set' command\r\n"),
        (["SET k v PX 1500", "PTTL k"], b":1500\r\n"),
        (["SET k v EX 10", "SET k w KEEPTTL", "TTL k"], b":10\r\n"),
        (["SET k v EX 10", "SET k w", "TTL k"], b":-1\r\n"),
        (["SET k v EX 10", "APPEND k w", "TTL k"], b":10\r\n"),
        (["SET k v EX 10", "PERSIST k", "TTL k"], b":-1\r\n"),
        (["SET k v PXAT 5", "EXISTS k"], b":0\r\n"),
        (["TTL nobody"], b":-2\r\n"),
        (["SET k v", "EXPIRE k -1", "EXISTS k"], b":0\r\n"),
        (["SET k v", "EXPIRE k 5 GT"], b":0\r\n"),
        (["SET k v", "EXPIRE k 5 LT"], b":1\r\n"),
        (["SET k v", "EXPIRE k 5 NX XX"], b"-ERR NX and XX, GT or LT options at the same time are not compatible\r\n"),
        (["SET k v", "EXPIRE k 9223372036854775807"], b"-ERR invalid expire time in 'expire' command\r\n"),
        (["SETNX k v", "SETNX k w"], b":0\r\n"),
        (["GETSET k v"], NULL),
        (["MSET a 1 b 2", "MGET a x b"], b"*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n2\r\n"),
        (["MSET a 1 b"], b"-ERR wrong number of arguments for 'mset' command\r\n"),
        (["MSET a 1 b 2", "DEL a b c"], b":2\r\n"),
        (["SET a 1", "EXISTS a a b"], b":2\r\n"),
        (["INCR n", "INCRBY n 41"], b":42\r\n"),
        (["DECR n", "DECRBY n 9"], b":-10\r\n"),
        (["SET n 9223372036854775807", "INCR n"], b"-ERR increment or decrement would overflow\r\n"),
        (["SET n 07", "INCR n"], NOT_AN_INTEGER),
        (["SET n x", "INCR n"], NOT_AN_INTEGER),
        (["INCRBY n 1.5"], NOT_AN_INTEGER),
        (["DECRBY n -9223372036854775808"], b"-ERR decrement would overflow\r\n"),
        (["SET k Hello", "GETRANGE k -3 -1"], b"$3\r\nllo\r\n"),
        (["SET k Hello", "GETRANGE k -1 -3"], b"$0\r\n\r\n"),
        (["SETRANGE k 3 x", "GET k"], b"$4\r\n\0\0\0x\r\n"),
        (["SETRANGE k -1 x"], b"-ERR offset is out of range\r\n"),
        (["SETRANGE k 536870911 xx"], b"-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n"),
        (["SETRANGE k 5 _", "EXISTS k"], b":0\r\n"),
        (["SET k v", "TYPE k"], b"+string\r\n"),
        (["TYPE k"], b"+none\r\n"),
        (["MSET a 1 b 2", "FLUSHALL ASYNC", "DBSIZE"], b":0\r\n"),
        (["FLUSHDB now"], b"-ERR syntax error\r\n"),
        (["SCAN x"], b"-ERR invalid cursor\r\n"),
        (["SCAN 0 COUNT 0"], b"-ERR syntax error\r\n"),
        (["SET abc 1", "KEYS a?c"], b"*1\r\n$3\r\nabc\r\n"),
        (["SET abc 1", "SCAN 0 COUNT 1000 MATCH a* TYPE string"], b"*2\r\n$1\r\n0\r\n*1\r\n$3\r\nabc\r\n"),
        (["SELECT 0"], OK),
        (["SELECT 1"], b"-ERR DB index is out of range\r\n"),
        (["SELECT x"], NOT_AN_INTEGER),
        (["HELLO 4"], b"-NOPROTO unsupported protocol version\r\n"),
        (["HELLO 3", "GET k"], b"_\r\n"),
        (["HELLO 3", "MGET k"], b"*1\r\n_\r\n"),
        (["HELLO 3", "CONFIG GET save"], b"%1\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        (["HELLO 3", "HELLO 2", "GET k"], NULL),
        (["CLIENT ID"], b":7\r\n"),
        (["CLIENT SETNAME me", "CLIENT GETNAME"], b"$2\r\nme\r\n"),
        (["CLIENT GETNAME"], NULL),
        (["CLIENT SETINFO LIB-NAME x"], OK),
        (["CONFIG GET appendonly"], b"*2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n"),
        (["get"], b"-ERR wrong number of arguments for 'get' command\r\n"),
        (["get a b"], b"-ERR wrong number of arguments for 'get' command\r\n"),
        (["NOPE a b"], b"-ERR unknown command 'NOPE', with args beginning with: 'a' 'b' \r\n"),
    ],
)
def test_answers(lines: list[str], last: bytes) -> None:
    client = session()
    assert [say(client, line) for line in lines][-1] == last


def test_entries_expire() -> None:
    client = session()
    say(client, "SET k v PX 100")
    client.store.now_ms += 99
    assert say(client, "GET k") == b"$1\r\nv\r\n"
    client.store.now_ms += 1
    assert say(client, "DBSIZE") == b":1\r\n"
    assert say(client, "GET k") == NULL
    assert say(client, "DBSIZE") == b":0\r\n"


def test_a_full_region_is_an_error_of_its_own() -> None:
    client = session(16 * 1024)
    full = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
    answers = [say(client, f"SET k{number} {'v' * 500}") for number in range(30)]
    assert answers[0] == OK and answers[-1] == full
    held = answers.count(OK)
    assert say(client, f"MSET k0 new late {'v' * 600}") == full
    assert say(client, f"APPEND k0 {'v' * 600}") == full
    assert say(client, "GET k0") == b"$500\r\n%b\r\n" % (b"v" * 500)
    assert say(client, f"DEL {' '.join(f'k{number}' for number in range(held))}") == b":%d\r\n" % held
    assert say(client, f"SET late {'v' * 600}") == OK


def test_what_no_transaction_holds_is_refused() -> None:
    client = session()
    too_long = b"-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n"
    assert run(client, [b"SET", b"k", bytes(20_000)]) == too_long
    assert run(client, [b"SET", b"k", bytes(10_000)]) == OK
    assert run(client, [b"APPEND", b"k", bytes(10_000)]) == too_long
    many = [part for number in range(4) for part in (b"%d" % number, bytes(10_000))]
    assert run(client, [b"MSET", *many]).startswith(b"-ERR more than one transaction of the log holds")
    assert say(client, "DBSIZE") == b":1\r\n"


def test_a_deletion_of_more_keys_than_a_transaction_holds() -> None:
    client = session(256 * 1024)
    names = [b"%d" % number for number in range(1500)]
    for name in names:
        client.store.make_room()
        assert run(client, [b"SET", name, b"v"]) == OK
    assert run(client, [b"DEL", *names]) == b":1500\r\n"
    client.store.commit()


def test_any_bytes_are_keys_and_values() -> None:
    client = session()
    key, value = bytes(range(256)), b"\r\n$3\r\n\0" + bytes(reversed(range(256)))
    assert run(client, [b"SET", key, value]) == OK
    assert run(client, [b"GET", key]) == b"$%d\r\n%b\r\n" % (len(value), value)
    assert run(client, [b"KEYS", b"*"]) == b"*1\r\n$256\r\n%b\r\n" % key
    assert run(client, [b"SET", b"", b""]) == OK
    assert run(client, [b"GET", b""]) == b"$0\r\n\r\n"


def test_every_command_says_something_to_any_arguments() -> None:
    client = session()
    for name in list(COMMANDS):
        for arguments in ([], [b"\xff"], [b"a", b"\r\n"], [b"0", b"-1", b"x"], [b"1", b"2", b"3", b"4"]):
            answer = run(client, [name, *arguments])
            assert answer[:1] in b"+-:$*" and answer.endswith(b"\r\n")


def test_commands_are_described() -> None:
    client = session()
    count = len(COMMANDS) // 2
    assert say(client, "COMMAND COUNT") == b":%d\r\n" % count
    assert say(client, "COMMAND").startswith(b"*%d\r\n" % count)
    assert say(client, "COMMAND INFO get") == (
        b"*1\r\n*10\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n" + b"*0\r\n" * 4
    )
    assert say(client, "COMMAND DOCS get nope").startswith(b"*2\r\n$3\r\nget\r\n*6\r\n")
