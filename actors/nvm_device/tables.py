"""Page tables: from a page of a region to the virtblock that says where its content lies.

Trees of four levels of 512 entries, so one table reaches 256 TiB. The entries of a leaf are virtblocks, 0 where a page
is a hole; all others are metadata pages of the nodes below. Tables share what they have in common: a snapshot takes the
root of the running point, and a node that others refer to is copied before it changes.

An entry of 0 above the leaves is an extent that nobody has written since the region's first snapshot: what is there is
what lies in the arena, for the running point and every snapshot alike. So large extents stay large, and a region of any
size is snapshotted in the same time. `chunk`: the 512 pages of one leaf.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from everram.actors.nvm_device.media import WORDS_PER_PAGE, Media
from everram.actors.nvm_device.redo import WORD_BYTES
from everram.actors.nvm_device.virtblocks import WORDS
from everram.runtime.memory.contract import PAGE_BYTES

LEVELS = 4
_BITS = 9
CHUNK_PAGES = WORDS_PER_PAGE
PAGES_MAX = 1 << _BITS * LEVELS
LEAF = 1
WORDS_PER_TURN = 8192
"""Compared in some four milliseconds."""
Node = tuple[int, int, int]
"""Level, first page, number."""
_SHIFTS = tuple(_BITS * (level - 1) for level in range(LEVELS, LEAF, -1))
"""From a page to its entry in a node, from the root down."""


def entry_offset(node: int, page: int, level: int) -> int:
    """Of a page's entry in the node at `level`; the root is at LEVELS."""
    return node * PAGE_BYTES + (page >> _BITS * (level - 1) & WORDS_PER_PAGE - 1) * WORD_BYTES


def node_at(media: Media, root: int, page: int, level: int) -> int:
    """The node of a table that covers `page` at `level`; 0 if it has none."""
    node, load = root, media.mapping.load_u64
    for shift in _SHIFTS[: LEVELS - level]:
        if not node:
            return 0
        node = load(node * PAGE_BYTES + (page >> shift & WORDS_PER_PAGE - 1) * WORD_BYTES)
    return node


def leaf_of(media: Media, root: int, page: int) -> int:
    """0: its chunk is an extent of the arena."""
    return node_at(media, root, page, LEAF)


def path(media: Media, root: int, page: int) -> list[int]:
    """The nodes from the root to the leaf of a page whose chunk is no extent."""
    nodes = [root]
    for level in range(LEVELS, LEAF, -1):
        nodes.append(media.word(entry_offset(nodes[-1], page, level)))
    return nodes


def entries(media: Media, node: int) -> tuple[int, ...]:
    return WORDS.unpack(media.load_page(node))


def leaves(media: Media, root: int, skip: Iterable[int] = ()) -> Iterator[tuple[int, int]]:
    """(first page, leaf) of each chunk of a table that is no extent, ascending by address. `skip`: see `nodes`."""
    return ((first, node) for level, first, node in nodes(media, root, skip) if level == LEAF)


def nodes(media: Media, root: int, skip: Iterable[int] = ()) -> Iterator[Node]:
    """Every node of a table, those below before those above.

    `skip`: roots of other tables; what is the same node in one of these, with all that lies below, is passed over.
    """
    others = set(skip)
    if root and root not in others:
        yield from _nodes_below(media, root, 0, LEVELS, others, 0, _Turn(1 << 62))


def some_nodes(media: Media, root: int, skip: Iterable[int], start: int) -> tuple[list[Node], int]:
    """As many of the same as one turn finds, from that page on, and the page to go on from; 0 when there are no more.
    Those above a page come with the turn that has come to their ends."""
    others, turn = set(skip), _Turn(WORDS_PER_TURN)
    if not root or root in others:
        return [], 0
    return list(_nodes_below(media, root, 0, LEVELS, others, start, turn)), turn.stopped_at


class _Turn:
    """What one turn may compare yet, in words."""

    def __init__(self, words: int) -> None:
        self.words = words
        self.stopped_at = 0


def _nodes_below(
    media: Media, node: int, first_page: int, level: int, skip: set[int], start: int, turn: _Turn
) -> Iterator[Node]:
    if level > LEAF:
        span = 1 << _BITS * (level - 1)
        for at, child in enumerate(entries(media, node)):
            if not child:
                continue
            first = first_page + at * span
            if first + span <= start:
                continue
            if turn.words <= 0 and first > start and not turn.stopped_at:  # one step at least
                turn.stopped_at = first
            if turn.stopped_at:
                return
            turn.words -= len(skip) + 1
            theirs = {media.word(other * PAGE_BYTES + at * WORD_BYTES) for other in skip} - {0}
            if child not in theirs:
                yield from _nodes_below(media, child, first, level - 1, theirs, start, turn)
        if turn.stopped_at:
            return
    yield level, first_page, node
