"""KV pages that outlive their requests: a tree by the tokens in them, so that a prompt which begins like an earlier one is not run again.

What a page holds depends on its tokens and on those before it alone, bit for bit: no answer can tell a page that was found from a computed one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict

from qwenbox.engine.pages import PagePool
from qwenbox.errors import EngineError
from qwenbox.types import PAGE_TOKENS, IntArray

_ID_BYTES = 4


def key_of(ids: IntArray) -> bytes:
    """The key of a page with these tokens: bytes that are ordered as the ids are."""
    return ids.astype(">i4").tobytes()


class Node:
    """A page in the tree, or a root, which has none. A page that is not full has no children and no users."""

    __slots__ = ("children", "key", "keys", "page", "parent", "salt", "users")

    def __init__(self, key: bytes, page: int, parent: Node | None, salt: str) -> None:
        self.key = key
        self.page = page
        self.parent = parent
        self.salt = salt
        self.users = 0
        self.keys: list[bytes] = []
        """Of the children, ascending."""
        self.children: list[Node] = []


class PrefixTree:
    """The pages of a pool, and what is in them. The tree is one holder of each page in it, every sequence that uses the page is another.

    A sequence uses a chain of full pages from a root on, so below a page that nobody uses there is none that anybody uses. These idle pages are given
    up when pages are wanted, the least recently used first. A chain is released from its end, so that one is always a leaf.
    Requests share pages only with requests of the same salt: each has a root of its own. `parent` None stands for it.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._roots: dict[str, Node] = {}
        self._idle: OrderedDict[Node, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can give."""
        return self.pool.num_free + len(self._idle)

    @property
    def num_used(self) -> int:
        return self.pool.num_pages - self.num_free

    def allocate(self, count: int) -> list[int]:
        """`count` pages, each with one holder; idle ones are given up for them. The caller has looked at `num_free`."""
        while self.pool.num_free < count and self._idle:
            self._remove(next(iter(self._idle)))
        return self.pool.allocate(count)

    def find(self, salt: str, parent: Node | None, key: bytes) -> Node | None:
        """The page with exactly these tokens after `parent`."""
        node = parent or self._roots.get(salt)
        if node is None:
            return None
        index = bisect_left(node.keys, key)
        return node.children[index] if index < len(node.keys) and node.keys[index] == key else None

    def nearest(self, salt: str, parent: Node | None, key: bytes) -> tuple[Node | None, int]:
        """The page after `parent` that begins with the most tokens of `key`, and how many. It is a neighbour of the key's place in their order."""
        node = parent or self._roots.get(salt)
        best, most = None, 0
        if node is not None:
            index = bisect_left(node.keys, key)
            for child in node.children[max(index - 1, 0) : index + 1]:
                if (shared := _shared(child.key, key)) > most:
                    best, most = child, shared
        return best, most

    def add(self, salt: str, parent: Node | None, key: bytes, page: int) -> Node:
        """The page with these tokens after `parent`, which is in use: the one in the tree, else `page`, which the tree holds from now on."""
        node = parent or self._roots.setdefault(salt, Node(b"", -1, None, salt))
        index = bisect_left(node.keys, key)
        if index < len(node.keys) and node.keys[index].startswith(key):
            return node.children[index]
        before = node.children[index - 1] if index else None
        self.pool.share([page])
        added = Node(key, page, node, salt)
        node.keys.insert(index, key)
        node.children.insert(index, added)
        self._idle[added] = None
        if before is not None and key.startswith(before.key):
            self._remove(before)  # it was not full, and what it holds is in the new one
        return added

    def use(self, node: Node) -> None:
        """One more user of a full page, whose parent the caller uses already."""
        self.pool.share([node.page])
        self._idle.pop(node, None)
        node.users += 1

    def touch(self, node: Node) -> None:
        """Has been read, and is given up later therefore."""
        if node in self._idle:
            self._idle.move_to_end(node)

    def release(self, chain: list[Node]) -> None:
        """One user less of each page of a chain."""
        for node in reversed(chain):
            node.users -= 1
            if not node.users:
                self._idle[node] = None
            self.pool.free([node.page])

    def check_integrity(self) -> list[int]:
        """The pages in the tree. EngineError where the books are wrong."""
        pages = []
        nodes = list(self._roots.values())
        while nodes:
            node = nodes.pop()
            if node.keys != sorted({child.key for child in node.children}) or [child.key for child in node.children] != node.keys:
                raise EngineError(f"the {len(node.children)} pages after page {node.page} are not in order")
            for child in node.children:
                if child.parent is not node or (child.children and len(child.key) != PAGE_TOKENS * _ID_BYTES):
                    raise EngineError(f"page {child.page} is in the wrong place of the tree")
                if (child.users == 0) != (child in self._idle) or (child.users and node.parent and not node.users):
                    raise EngineError(f"page {child.page} has {child.users} users after a page with {node.users}")
            pages += [child.page for child in node.children]
            nodes += node.children
        if any(not root.children for root in self._roots.values()) or len(self._idle) > len(pages):
            raise EngineError(f"{len(self._roots)} roots, {len(self._idle)} idle pages of {len(pages)}")
        return pages

    def _remove(self, node: Node) -> None:
        if node.users or node.children or node.parent is None:
            raise EngineError(f"page {node.page} with {node.users} users and {len(node.children)} pages after it cannot leave the tree")
        parent = node.parent
        index = bisect_left(parent.keys, node.key)
        del parent.keys[index], parent.children[index], self._idle[node]
        if parent.parent is None and not parent.children:
            del self._roots[node.salt]
        self.pool.free([node.page])


def _shared(one: bytes, other: bytes) -> int:
    """Tokens that two keys begin with in common."""
    length = min(len(one), len(other))
    for start in range(0, length, _ID_BYTES):
        if one[start : start + _ID_BYTES] != other[start : start + _ID_BYTES]:
            return start // _ID_BYTES
    return length // _ID_BYTES
