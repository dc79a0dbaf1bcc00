"""A bundle as a shim runs it: the checked config, the machine's init put first when asked for, the filter's bytes.

It is read by the process that becomes the container or by the daemon, never by the shim itself.
"""

from __future__ import annotations

import os

from worker.runtime import seccomp, spec
from worker.runtime.errors import RuntimeFault

_TINI = ("/usr/bin/tini-static", "/usr/libexec/docker/docker-init", "/usr/bin/docker-init", "/usr/bin/tini")
_INIT_PATH = "/sbin/docker-init"


def load(bundle: str, with_init: bool, ident: str = "") -> spec.Config:
    """The config of ``bundle``. Raises SpecFault, or RuntimeFault when there is no init program to put first.

    ``ident``: the container's, for a cgroup that the config does not name.
    """
    return completed(spec.load(bundle, ident), bundle, with_init)


def completed(config: spec.Config, bundle: str, with_init: bool) -> spec.Config:
    """``config``, which is changed, with what ``load`` adds to a checked one. Raises as ``load`` does."""
    if with_init:
        put_init_first(config)
    filter_ = seccomp.of_config(config, bundle)
    if filter_ is not None:
        config["covey"] = {**(config.get("covey") or {}), "seccomp": filter_}
    return config


def put_init_first(config: spec.Config) -> None:
    """Have the machine's tini reap orphans as the container's first process, unless the bundle has done so."""
    args = config["process"]["args"]
    if args[0] == _INIT_PATH:
        return
    for path in _TINI:
        if os.path.exists(path):
            break
    else:
        raise RuntimeFault("not-found", f"no init program at {' or '.join(_TINI)}: install the package tini", "create")
    mount = {"destination": _INIT_PATH, "type": "bind", "source": path, "options": ["bind", "ro"]}
    config["mounts"] = [*(config.get("mounts") or []), mount]
    config["process"]["args"] = [_INIT_PATH, "--", *args]
