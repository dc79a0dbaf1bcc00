"""A bundle as the command line runs it, and its seccomp filter as it is kept on record.

The filter is compiled once, at create: later edits of the bundle have no effect, nor has a profile that is gone by then.
"""

from __future__ import annotations

import base64
from typing import Any

from worker.runtime import seccomp, spec

_CGROUP_PARENT = "/covey-runtime"


def load(directory: str, ident: str, file: str = "") -> spec.Config:
    """The checked config of a bundle, or of ``file`` in its place. Raises SpecFault.

    Where it has a filter, ``covey.seccomp.instructions`` holds it in base64.
    """
    config = spec.load(directory, ident, _CGROUP_PARENT, file)
    filter_ = seccomp.of_config(config, directory)
    if filter_ is not None:
        text = base64.b64encode(filter_["instructions"]).decode("ascii")
        config["covey"] = {**(config.get("covey") or {}), "seccomp": {**filter_, "instructions": text}}
    return config


def with_filter(config: spec.Config) -> spec.Config:
    """The config as worker.runtime.launch takes it: the filter as bytes."""
    filter_: dict[str, Any] = (config.get("covey") or {}).get("seccomp") or {}
    if not filter_:
        return config
    return {
        **config,
        "covey": {**config["covey"], "seccomp": {**filter_, "instructions": base64.b64decode(filter_["instructions"])}},
    }
