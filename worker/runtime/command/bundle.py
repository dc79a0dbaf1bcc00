"""Reads a bundle as the command line runs it: paths, the default cgroup, the seccomp filter, systemd's sockets.

The config it answers is what goes on record: later edits of the bundle have no effect.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any

from worker.runtime import spec
from worker.runtime.errors import SpecFault

package_paths: list[str] = []
"""Where pyseccomp lies when site-packages are left out; set by the second start."""


def load(directory: str, ident: str) -> spec.Config:
    """The checked config. ``covey.filter`` holds the compiled filter, base64. Raises SpecFault."""
    path = os.path.join(directory, "config.json")
    try:
        with open(path, "rb") as file:
            config = json.load(file)
    except FileNotFoundError:
        raise SpecFault("config.json", f"there is none in bundle {directory}") from None
    except ValueError as error:
        raise SpecFault("config.json", f"is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise SpecFault("config.json", "must be an object")
    linux = config.setdefault("linux", {})
    if not linux.get("cgroupsPath"):
        linux["cgroupsPath"] = f"/covey-runtime/{ident}"
    elif not linux["cgroupsPath"].startswith("/"):
        linux["cgroupsPath"] = f"/covey-runtime/{linux['cgroupsPath']}"
    profile = linux.pop("seccomp", None)
    spec.check(config)
    config["root"]["path"] = os.path.join(directory, config["root"]["path"])
    if profile:
        config["covey"] = {**config.get("covey", {}), "filter": base64.b64encode(_compile(config, profile)).decode()}
    return config


def _compile(config: spec.Config, profile: dict[str, Any]) -> bytes:
    sys.path.extend(path for path in package_paths if path not in sys.path)
    from worker.runtime import seccomp_compile

    held = (config["process"].get("capabilities") or {}).get("bounding") or []
    return seccomp_compile.compile(profile, held, os.uname().machine)


def with_filter(config: spec.Config) -> spec.Config:
    """The config as worker.runtime.launch takes it: the filter as bytes."""
    encoded = (config.get("covey") or {}).get("filter")
    if not encoded:
        return config
    return {**config, "covey": {**config["covey"], "seccomp": {"instructions": base64.b64decode(encoded), "flags": ()}}}
