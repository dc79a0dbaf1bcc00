"""Loads the models that check bodies when the first body comes, beside the event loop.

They and pydantic hold about 8 MB and take a third of a second to load: a node that only runs a cluster's services needs
neither. Handlers call ``models`` and import what they check with after it.
"""

from __future__ import annotations

import asyncio
import importlib
import sys

_MODULES = ("covey.engine_api.types.container", "covey.engine_api.types.network")


async def models() -> None:
    """Returns when the models of node routes are loaded."""
    for name in _MODULES:
        if name not in sys.modules:
            await asyncio.to_thread(importlib.import_module, name)
