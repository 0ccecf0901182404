"""The Redis protocol: requests out of whatever bytes arrive, and how answers are written.

    parser = Parser(bulk_bytes_max, request_bytes_max)
    for request in parser.feed(data):                 # each a list of bytes, the command's name first
        ...
    if parser.error: ...                              # say it and close: what follows cannot be understood

Version 3 is here as far as it differs for what this server answers: there is a null of its own, and maps.

A request may be an array of bulk strings (what clients send) or a line of words (what people type into `nc`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

INLINE_BYTES_MAX = 64 * 1024
ARGUMENTS_MAX = 1024 * 1024
_CRLF = b"\r\n"
_COUNTS = {b"*%d" % count: count for count in range(1, 65)}
_LENGTHS = tuple(b"$%d" % length for length in range(1024))
_NUMBER = re.compile(rb"-?\d{1,18}")
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}

OK = b"+OK\r\n"
NULL, NULL_3 = b"$-1\r\n", b"_\r\n"
ZERO, ONE = b":0\r\n", b":1\r\n"


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def integer(number: int) -> bytes:
    return b":%d\r\n" % number


def error(words: str) -> bytes:
    """`words` begin with the code that clients look at: ERR, OOM."""
    return b"-" + words.replace("\r", " ").replace("\n", " ").encode(errors="surrogateescape") + _CRLF


def array(parts: Iterable[bytes]) -> bytes:
    """Of answers that are written already."""
    written = list(parts)
    return b"*%d\r\n" % len(written) + b"".join(written)


def bulks(values: Iterable[bytes]) -> bytes:
    return array(map(bulk, values))


def mapping(parts: Iterable[bytes], protocol: int) -> bytes:
    """Of keys and values in turn, written already: a map, where the protocol has them."""
    written = list(parts)
    head = b"%%%d\r\n" % (len(written) // 2) if protocol == 3 else b"*%d\r\n" % len(written)
    return head + b"".join(written)


class Parser:
    """Of one connection."""

    def __init__(self, bulk_bytes_max: int, request_bytes_max: int) -> None:
        self.error = ""
        """Why nothing more can be read; in Redis's words."""
        self._bulk_bytes_max = bulk_bytes_max
        self._request_bytes_max = request_bytes_max
        self._chunks: list[bytes] = []
        """What was received and belongs to no whole argument yet."""
        self._chunk_bytes = 0
        self._needed_bytes = 0
        """Less than that is not worth looking at."""
        self._arguments: list[bytes] = []
        self._count = 0
        """How many arguments the request has that is being received; 0: none is."""
        self._request_bytes = 0

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The requests that are whole now."""
        if self.error:
            return []
        if self._chunks:
            self._chunks.append(data)
            self._chunk_bytes += len(data)
            if self._chunk_bytes < self._needed_bytes:
                return []
            data = b"".join(self._chunks)
            self._chunks = []
        requests: list[list[bytes]] = []
        at = 0 if self._count else _plain(data, requests)
        while at < len(data):
            at, found = self._next(data, at)
            if found is None:
                break
            if found:
                requests.append(found)
        if at < len(data) and not self.error:
            self._chunks, self._chunk_bytes = [data[at:]], len(data) - at
        return requests

    def _next(self, data: bytes, at: int) -> tuple[int, list[bytes] | None]:
        """One request (empty: a line without words); None if it is not whole. What is whole of it is kept."""
        if not self._count:
            self._request_bytes = 0
            if data[at : at + 1] != b"*":
                return self._line(data, at)
            number, at = self._number(data, at, "mbulk count")
            if number is None:
                return at, None
            if number > ARGUMENTS_MAX:
                return self._fail("invalid multibulk length")
            if number <= 0:
                return at, []
            self._count = number
        arguments = self._arguments
        while len(arguments) < self._count:
            at, argument = self._bulk(data, at)
            if argument is None:
                return at, None
            arguments.append(argument)
        self._arguments, self._count = [], 0
        return at, arguments

    def _bulk(self, data: bytes, at: int) -> tuple[int, bytes | None]:
        start = at
        kind = data[at : at + 1]
        if kind and kind != b"$":
            return self._fail(f"expected '$', got '{chr(kind[0])}'")
        length, at = self._number(data, at, "bulk count")
        if length is None:
            return at, None
        if not 0 <= length <= self._bulk_bytes_max:
            return self._fail("invalid bulk length")
        if self._request_bytes + length > self._request_bytes_max:
            return self._fail("too big request")
        end = at + length
        if end + 2 > len(data):
            self._needed_bytes = end + 2 - start
            return start, None
        if data[end : end + 2] != _CRLF:
            return self._fail("invalid bulk length")
        self._request_bytes += length + 16
        return end + 2, data[at:end]

    def _number(self, data: bytes, at: int, what: str) -> tuple[int | None, int]:
        """The number of a line such as `*3`, and where the next begins."""
        end = data.find(_CRLF, at, at + 64)
        if end < 0:
            if len(data) - at >= 64:
                self._fail(f"too big {what} string")
            self._needed_bytes = 0
            return None, at
        digits = data[at + 1 : end]
        if not _NUMBER.fullmatch(digits):
            self._fail("invalid multibulk length" if what == "mbulk count" else "invalid bulk length")
            return None, at
        return int(digits), end + 2

    def _line(self, data: bytes, at: int) -> tuple[int, list[bytes] | None]:
        end = data.find(b"\n", at, at + INLINE_BYTES_MAX + 1)
        if end < 0:
            if len(data) - at > INLINE_BYTES_MAX:
                return self._fail("too big inline request")
            self._needed_bytes = 0
            return at, None
        words = split_words(data[at:end])
        return self._fail("unbalanced quotes in request") if words is None else (end + 1, words)

    def _fail(self, why: str) -> tuple[int, None]:
        self.error = f"Protocol error: {why}"
        return 0, None


def _plain(data: bytes, requests: list[list[bytes]]) -> int:
    """Take the requests from the front that are whole and have no line end inside an argument: nearly all there are.

    What follows the last of them begins at the offset returned. Cutting at line ends is one call for all; then a line
    is an argument if its length is the one announced, and if not, somebody else has to look.
    """
    lines = data.split(_CRLF)
    last, at, lengths = len(lines) - 1, 0, _LENGTHS
    while at < last:
        count = _COUNTS.get(lines[at])
        if count is None:
            break
        end = at + 1 + 2 * count
        if end > last:
            break
        request = lines[at + 2 : end : 2]
        try:
            expected = [lengths[len(argument)] for argument in request]
        except IndexError:
            expected = [b"$%d" % len(argument) for argument in request]
        if lines[at + 1 : end : 2] != expected:
            break
        requests.append(request)
        at = end
    if at == last and not lines[last]:
        return len(data)
    return sum(map(len, lines[:at])) + 2 * at


def split_words(line: bytes) -> list[bytes] | None:
    """Words of a line, as Redis reads them: quotes and escapes as in C. None if a quote is not closed as it should."""
    words, at = [], 0
    line = line.strip(b" \t\r\n\0\v\f")
    while at < len(line):
        if line[at : at + 1].isspace():
            at += 1
            continue
        word, at = _word(line, at)
        if word is None:
            return None
        words.append(word)
    return words


_BARE = re.compile(rb"[^\s\"']+")
_DOUBLE = re.compile(rb'"((?:[^"\\]|\\.)*+)"(?=\s|$)', re.DOTALL)
_SINGLE = re.compile(rb"'((?:[^'\\]|\\.)*+)'(?=\s|$)", re.DOTALL)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)


def _word(line: bytes, at: int) -> tuple[bytes | None, int]:
    """A word may begin bare and go on in quotes, which end it."""
    word = b""
    if bare := _BARE.match(line, at):
        word, at = bare[0], bare.end()
    if double := _DOUBLE.match(line, at):
        return word + _ESCAPE.sub(_unescape, double[1]), double.end()
    if single := _SINGLE.match(line, at):
        return word + single[1].replace(b"\\'", b"'"), single.end()
    return (None, at) if line[at : at + 1] in (b'"', b"'") else (word, at)


def _unescape(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 16)]) if found[1] else _ESCAPES.get(found[2], found[2])
