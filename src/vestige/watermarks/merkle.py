"""A list of records' digests under one root: SHA-256 trees as of RFC 6962, over sorted digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["levels", "path", "root", "root_of"]


def root(digests: Sequence[bytes]) -> bytes:
    """Of a list in any order, copies counting once."""
    return levels(sorted(set(digests)))[-1][0]


def _leaf(digest: bytes) -> bytes:
    return hashlib.sha256(b"\0" + digest).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def levels(digests: Sequence[bytes]) -> list[list[bytes]]:
    """The Merkle tree, leaves first; a node without a sibling goes up as it is."""
    out = [[_leaf(d) for d in digests]]
    while len(out[-1]) > 1:
        row = out[-1]
        pairs = zip(row[::2], row[1::2], strict=False)
        out.append([_node(a, b) for a, b in pairs] + row[len(row) // 2 * 2 :])
    return out


def path(tree: Sequence[Sequence[bytes]], place: int) -> list[str]:
    """The siblings of a leaf from below, "" where there is none."""
    out = []
    for row in tree[:-1]:
        sibling = place ^ 1
        out.append(row[sibling].hex() if sibling < len(row) else "")
        place //= 2
    return out


def root_of(digest: bytes, place: int, n: int, siblings: Sequence[str]) -> bytes | None:
    """The root that a leaf and its siblings give; None for a path that fits no tree of n leaves."""
    if any(len(s) not in (0, 64) or set(s) - set("0123456789abcdef") for s in siblings):
        return None
    node, width, left = _leaf(digest), n, list(siblings)
    while width > 1:
        if not left:
            return None
        sibling, there = left.pop(0), place ^ 1
        if (there < width) != bool(sibling):
            return None
        if sibling:
            other = bytes.fromhex(sibling)
            node = _node(other, node) if place % 2 else _node(node, other)
        place, width = place // 2, -(-width // 2)
    return None if left else node
