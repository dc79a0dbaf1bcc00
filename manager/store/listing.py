"""Reading the whole store at one revision, in pages: everything, the keys only, or the values of some keys.

It decides page sizes and how to fetch few or many; it holds nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from manager.store.interface import KeyValue, Store
from manager.store.keys import TABLE, Keys

PAGE = 500
LARGE_PAGE = 8
LARGE = frozenset(("secret", "config"))
"""Kinds whose values may be near 1 MB each."""
KEY_PAGE = 5000
AT_ONCE = 16
MANY = 4
"""From this part (1 in MANY) of all keys on, reading everything is cheaper than key by key."""


async def list_all(store: Store, keys: Keys, revision: int) -> AsyncIterator[Sequence[KeyValue]]:
    """Every key of ours with its value as of ``revision``, page by page. Raises Compacted when that is gone meanwhile."""
    for kind in TABLE:
        limit = LARGE_PAGE if kind in LARGE else PAGE
        after, more = "", True
        while more:
            page = await store.range(keys.prefix(kind), limit=limit, after_key=after, revision=revision)
            yield [item for item in page.items if keys.knows(item.key)]
            after, more = page.items[-1].key if page.items else "", page.more


async def list_keys(store: Store, keys: Keys) -> tuple[dict[str, int], int]:
    """Key → mod_revision of everything that is ours, and the revision it was so at."""
    present: dict[str, int] = {}
    revision, after, more = 0, "", True
    while more:
        page = await store.keys(keys.everything(), limit=KEY_PAGE, after_key=after, revision=revision)
        present.update(item for item in page.items if keys.knows(item.key))
        revision, more = page.revision, page.more
        after = page.items[-1].key if page.items else ""
    return present, revision


async def list_changed(store: Store, keys: Keys, wanted: Sequence[str], total: int, revision: int) -> list[KeyValue]:
    """The ``wanted`` keys (of ``total`` that there are) with their values as of ``revision``."""
    if len(wanted) * MANY > total and len(wanted) > AT_ONCE:
        chosen = set(wanted)
        return [item async for page in list_all(store, keys, revision) for item in page if item.key in chosen]
    found: list[KeyValue] = []
    for start in range(0, len(wanted), AT_ONCE):
        pages = await asyncio.gather(*(store.range(key, limit=1, revision=revision) for key in wanted[start : start + AT_ONCE]))
        found += [item for page in pages for item in page.items]
    return found
