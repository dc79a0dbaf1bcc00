"""Images made from the distribution's static busybox: for the demo, the lab and tests. Never downloaded.

Makes bytes only; loading them is the Engine API's business. The same input always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

BUSYBOX_PATHS = ("/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_EPOCH = "1970-01-01T00:00:00Z"
_DIRECTORIES = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o555, "root": 0o700, "sys": 0o555,
    "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755, "var": 0o755, "var/run": 0o755, "www": 0o755,
}  # fmt: skip
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww:x:1000:1000:www:/www:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/home:/bin/false\n",
    "etc/group": "root:x:0:\nwww:x:1000:\nnogroup:x:65534:\n",
    "www/index.html": "<!doctype html><title>covey</title><p>hello from covey\n",
}


def busybox_path() -> str:
    """The static busybox of the distribution; FileNotFoundError that says what to install."""
    for path in BUSYBOX_PATHS:
        if os.access(path, os.X_OK):
            return path
    raise FileNotFoundError("no busybox found: install the package busybox-static")


def architecture() -> str:
    """This machine's architecture as images name it."""
    return _MACHINES.get(os.uname().machine, os.uname().machine)


def tar(members: Sequence[tuple[str, int, bytes | str | None]]) -> bytes:
    """A tar of (path, mode, content): bytes make a file, a str a symbolic link to it, None a directory. All root's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, mode, content in members:
            info = tarfile.TarInfo(path)
            info.mode = mode
            if content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def busybox_rootfs_tar(files: Mapping[str, bytes] | None = None) -> bytes:
    """A small root file system: busybox with all its applets, users root, www (1000) and nobody, and ``files``.

    ``files`` are path → content, mode 0755 below ``bin`` and 0644 elsewhere; they win over the defaults.
    """
    binary = busybox_path()
    with open(binary, "rb") as file:
        busybox = file.read()
    applets = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.split()
    members: list[tuple[str, int, bytes | str | None]] = [(name, mode, None) for name, mode in _DIRECTORIES.items()]
    members.append(("bin/busybox", 0o755, busybox))
    members += [(f"bin/{name}", 0o777, "busybox") for name in applets if name != "busybox"]
    members.append(("usr/bin/env", 0o777, "/bin/busybox"))
    contents = {name: text.encode() for name, text in _FILES.items()} | dict(files or {})
    for path, content in sorted(contents.items()):
        members.append((path.lstrip("/"), 0o755 if path.lstrip("/").startswith("bin/") else 0o644, content))
    return tar(members)


def docker_archive(name: str, layers: Sequence[bytes], config: Mapping[str, Any] | None = None) -> bytes:
    """What ``docker save name`` would give for an image of ``layers`` (plain tars, lowest first).

    ``config`` is the container configuration (Cmd, Entrypoint, Env, ExposedPorts …).
    """
    diff_ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
    document = {
        "architecture": architecture(),
        "os": "linux",
        "created": _EPOCH,
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": _EPOCH, "created_by": "covey make-image"} for _ in layers],
    }
    encoded = json.dumps(document, sort_keys=True).encode()
    config_name = hashlib.sha256(encoded).hexdigest() + ".json"
    layer_names = [f"{diff_id.removeprefix('sha256:')}/layer.tar" for diff_id in diff_ids]
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": layer_names}]
    unique = dict(zip(layer_names, layers))
    return tar(
        [
            *((layer_name, 0o644, layer) for layer_name, layer in unique.items()),
            (config_name, 0o644, encoded),
            ("manifest.json", 0o644, json.dumps(manifest).encode()),
        ]
    )
