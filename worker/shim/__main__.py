"""Composes the zygote with the shim it forks: ``python -I -S -m worker.shim <zygote.sock>`` with our path importable.

The command is made by worker.containers.shim_client; -I -S keep site-packages, and with them everything but the
standard library, out of every shim.
"""

from __future__ import annotations

import os
import sys

from worker.kernel import syscalls
from worker.runtime import cgroups, init
from worker.runtime.zygote import Zygote
from worker.shim import main as shim


def main() -> None:
    # What whoever started us forgot to close must not live on in every shim.
    syscalls.close_range(3)
    init.prepare()
    syscalls.prctl(syscalls.PR_SET_NAME, b"covey-zygote")
    found = cgroups.hierarchies()
    Zygote(sys.argv[1], lambda request, listener: shim.main(request, listener, found)).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter's own clean-up would touch, and so copy, pages that are shared with every other shim.
    os._exit(0)


if __name__ == "__main__":
    main()
