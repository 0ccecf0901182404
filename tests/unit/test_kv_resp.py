"""The Redis protocol as examples/kv.py reads it: however bytes are cut, whatever they are."""

from __future__ import annotations

import fnmatch
import re
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everram.examples.keyvalue.glob import compile_pattern
from everram.examples.keyvalue.resp import ARGUMENTS_MAX, INLINE_BYTES_MAX, Parser, bulk, error, split_words

BULK_BYTES_MAX, REQUEST_BYTES_MAX = 10_000, 20_000
ARGUMENTS = st.binary(max_size=12) | st.sampled_from([b"\r\n", b"a\r\n$3\r\nb", b"*1\r\n", b"x" * 1030, b""])
REQUESTS = st.lists(st.lists(ARGUMENTS, min_size=1, max_size=70), max_size=5)


def parser() -> Parser:
    return Parser(BULK_BYTES_MAX, REQUEST_BYTES_MAX)


def written(request: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(request) + b"".join(map(bulk, request))


def fed(data: bytes, cuts: list[int]) -> tuple[list[list[bytes]], str]:
    reader, requests, at = parser(), [], 0
    for cut in [*sorted(cuts), len(data)]:
        if cut > at:
            requests += reader.feed(data[at:cut])
            at = cut
    return requests, reader.error


@given(REQUESTS, st.lists(st.integers(0, 500), max_size=8))
@settings(max_examples=200, deadline=None)
def test_requests_arrive_however_they_are_cut(requests: list[list[bytes]], cuts: list[int]) -> None:
    data = b"".join(map(written, requests))
    assert fed(data, [cut for cut in cuts if cut < len(data)]) == (requests, "")


@given(REQUESTS.filter(lambda requests: sum(map(len, requests)) < 40))
@settings(max_examples=30, deadline=None)
def test_byte_by_byte(requests: list[list[bytes]]) -> None:
    data = b"".join(map(written, requests))
    assert fed(data, list(range(len(data)))) == (requests, "")


NOISE = st.lists(
    st.sampled_from(
        [b"*", b"$", b"\r\n", b"\n", b"1", b"3", b"-1", b"GET", b" ", b'"', b"\\", b"'", b"\0", b"99999999999"]
    )
    | st.binary(max_size=5),
    max_size=40,
).map(b"".join)


@given(NOISE, st.lists(st.integers(0, 60), max_size=5))
@example(b"*1\r\n$4\r\nPINGxx", [])
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_read_the_same_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    whole, why = fed(data, [])
    assert fed(data, [cut for cut in cuts if cut < len(data)]) == (whole, why)
    assert why == "" or why.startswith("Protocol error: ")
    assert all(request and all(type(word) is bytes for word in request) for request in whole)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*%d\r\n" % (ARGUMENTS_MAX + 1), "invalid multibulk length"),
        (b"*1\r\n:3\r\n", "expected '$', got ':'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n$%d\r\n" % (BULK_BYTES_MAX + 1), "invalid bulk length"),
        (b"*3\r\n" + bulk(bytes(BULK_BYTES_MAX)) * 2 + b"$10\r\n", "too big request"),
        (b"*" + b"1" * 64, "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * 64, "too big bulk count string"),
        (b"a" * (INLINE_BYTES_MAX + 1), "too big inline request"),
        (b'SET a "b\r\n', "unbalanced quotes in request"),
    ],
)
def test_what_cannot_be_read(data: bytes, why: str) -> None:
    reader = parser()
    assert reader.feed(b"PING\r\n" + data) == [[b"PING"]]
    assert reader.error == f"Protocol error: {why}"
    assert reader.feed(b"PING\r\n") == []


def test_requests_of_no_arguments_are_none() -> None:
    assert fed(b"*0\r\n\r\n*-1\r\n\nPING\n*1\r\n$4\r\nPING\r\n", []) == ([[b"PING"], [b"PING"]], "")


def test_much_in_little_pieces_takes_no_quadratic_time() -> None:
    reader = Parser(1 << 26, 1 << 26)
    request = [b"MSET", *(b"%d" % number for number in range(40_000)), bytes(1 << 22)]
    data, found = written(request), []
    for at in range(0, len(data), 4096):
        found += reader.feed(data[at : at + 4096])
    assert found == [request]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"  set  a\tb ", [b"set", b"a", b"b"]),
        (rb'set "a b" "\x41\n\"\\"', [b"set", b"a b", b'A\n"\\']),
        (rb"set 'it\'s \x'", [b"set", rb"it's \x"]),
        (b'set a"b"', [b"set", b"ab"]),
        (b'set "a"b', None),
        (b"set 'a", None),
        (b'""', [b""]),
        (b"", []),
    ],
)
def test_lines_are_words(line: bytes, words: list[bytes] | None) -> None:
    assert split_words(line) == words


def test_an_error_is_one_line() -> None:
    assert error("ERR a\r\nb") == b"-ERR a  b\r\n"


LETTERS = st.text("ab*?", max_size=8)


@given(LETTERS, st.text("ab", max_size=8))
@settings(max_examples=300, deadline=None)
def test_stars_and_question_marks(pattern: str, key: str) -> None:
    matches = compile_pattern(pattern.encode())
    expected = re.fullmatch(fnmatch.translate(pattern), key) is not None
    assert (matches is None or bool(matches(key.encode()))) == expected


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("h[ae]llo", ["hello", "hallo"], ["hillo", "h[ae]llo"]),
        ("h[^e]llo", ["hallo", "h\nllo"], ["hello"]),
        ("h[a-c]x", ["hax", "hcx"], ["hdx", "h-x"]),
        ("h[c-a]x", ["hbx"], ["hdx"]),
        (r"h\*x", ["h*x"], ["hax"]),
        (r"h[\]]x", ["h]x"], ["hx"]),
        ("h[ab", ["ha"], ["h[ab"]),
        ("", [""], ["a"]),
        ("a.c", ["a.c"], ["abc"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    matches = compile_pattern(pattern.encode())
    assert matches is not None
    assert all(matches(key.encode()) for key in yes)
    assert not any(matches(key.encode()) for key in no)


def test_no_pattern_takes_exponential_time() -> None:
    matches = compile_pattern(b"*a" * 30 + b"*b")
    assert matches is not None
    assert not matches(b"a" * 2000)
    every = compile_pattern(string.printable.replace("[", "").replace("\\", "").encode())
    assert every is not None
