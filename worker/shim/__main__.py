"""Composes the zygote with the shim it forks: ``python -I -S -m worker.shim <zygote.sock> [cgroup]``,
with our path importable; ``cgroup`` is the parent of the containers' own.

The command is made by worker.containers.shim_client; -I -S keep site-packages, and with them everything but the
standard library, out of every shim.
"""

from __future__ import annotations

import os
import sys

from worker.kernel import safe_paths, syscalls
from worker.kernel.bare import partial, suppress
from worker.runtime import cgroups, init, lean
from worker.runtime.zygote import Zygote
from worker.shim import direct, handover, keeper
from worker.shim.rehearsal import rehearse

_OOM_SCORE = -998


def main() -> None:
    # What whoever started us forgot to close must not live on in every shim.
    syscalls.close_range(3)
    init.prepare()
    syscalls.prctl(syscalls.PR_SET_NAME, b"covey-zygote")
    # What a shim that was killed leaves is reaped here at once: a pid namespace goes only when all of its processes are
    # reaped, and not every machine's first process is quick at it.
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    with suppress(OSError):
        # Every shim inherits it; without CAP_SYS_RESOURCE they keep the daemon's score.
        safe_paths.write_proc("self/oom_score_adj", str(_OOM_SCORE))
    found = cgroups.hierarchies()
    if len(sys.argv) > 2:
        _enter(sys.argv[2], found)
    rehearse(found)
    lean_namespace = -1
    with suppress(OSError):
        # Without one each start copies all of the machine's mounts.
        lean_namespace = lean.make(os.path.dirname(os.path.abspath(sys.argv[1])))

    def resume(handed: keeper.Handed, channel: keeper.Channel) -> None:
        handover.resume(handed, channel, found)

    def tend(line: int, root: int, request: bytes) -> None:
        seen = direct.Sight(root, lean_namespace)
        given = [line] if root < 0 else [line, root]
        keeper.tend(given, partial(direct.become, request, line, seen, found), resume)

    Zygote(
        sys.argv[1],
        lambda asker: keeper.divide(asker, resume),
        lambda request, listener, channel: handover.begin(request, listener, channel, found),
        tend,
        takes_root=lean_namespace >= 0,
    ).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter's own clean-up would touch, and so copy, pages that are shared with every other shim.
    os._exit(0)


def _enter(parent: str, hierarchies: list[cgroups.Hierarchy]) -> None:
    """Be, and have every shim be, below the parent of the containers' cgroups.

    Out of the daemon's cgroup, which may be emptied when the daemon is stopped. Who cannot move stays: the end of that
    cgroup would be the containers'.
    """
    with suppress(OSError):
        group = cgroups.Cgroup(f"{parent}/shims", hierarchies)
        group.create()
        group.enter()


if __name__ == "__main__":
    main()
