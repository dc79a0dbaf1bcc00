"""What processes forked from the zygote take of the standard library, without what stands around it there.

``typing``, ``contextlib``, ``collections``, ``enum`` and what they bring along are 2 MB of memory, which every fork has to be
given a map of, and has to let go of when it becomes a container. None of it does anything there that these do not. To type
checkers they are the originals.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signal
    from collections import deque as deque
    from collections.abc import Callable as Callable
    from collections.abc import Iterable as Iterable
    from collections.abc import Iterator as Iterator
    from collections.abc import Sequence as Sequence
    from contextlib import suppress as suppress
    from functools import partial as partial
    from typing import Any as Any
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
else:
    import _signal
    from _collections import deque as deque
    from _collections_abc import Callable as Callable
    from _collections_abc import Iterable as Iterable
    from _collections_abc import Iterator as Iterator
    from _collections_abc import Sequence as Sequence
    from _functools import partial as partial

    signal = _signal
    Any = NoReturn = object

    class Protocol:
        pass

    class suppress:
        __slots__ = ("_kinds",)

        def __init__(self, *kinds):
            self._kinds = kinds

        def __enter__(self):
            pass

        def __exit__(self, kind, *_):
            return kind is not None and issubclass(kind, self._kinds)
