"""The table `posture`: what is open to a default container, Covey's beside Docker's, and where Covey would be the weaker.

One container of the same image is run on each; a program inside (posture_probe) looks. Each row has a rule that says
what weaker means there; what Docker's newest release opens as well is no weakness against an older one, and is named.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rivals import COVEY, DOCKER, Rival, running

from covey.testing import images, python_image

IMAGE = "covey/posture:bench"
PROBE = Path(__file__).with_name("posture_probe.py")
PROFILE = Path(__file__).resolve().parents[2] / "worker/containers/seccomp-default.json"
REFUSED = ("EPERM", "ENOSYS")
STATES = ("writable", "read-only", "hidden", "absent")
HARDENING = {"ro", "nosuid", "nodev", "noexec"}


@dataclass(frozen=True)
class Row:
    """A line of the table. ``weaker``: Covey's is; ``why``: what makes a difference acceptable, if something does."""

    title: str
    covey: str
    docker: str
    weaker: bool = False
    why: str = ""

    @property
    def mark(self) -> str:
        if self.weaker:
            return "WEAKER"
        return "=" if self.covey == self.docker else self.why or "stricter"


def _mask(value: Mapping[str, str], name: str) -> int:
    return int(value[name], 16)


def _capabilities(covey: dict[str, str], docker: dict[str, str]) -> Iterator[Row]:
    """Each set is a subset of Docker's."""
    for name in covey:
        more = _mask(covey, name) & ~_mask(docker, name)
        yield Row(f"capabilities {name}", covey[name].lstrip("0") or "0", docker[name].lstrip("0") or "0", bool(more))


def newest_allows(call: str, profile: Mapping[str, Any]) -> bool:
    """Whether the newest Docker's profile allows a call to everybody: a rule without capability, machine or arguments."""
    name = call.partition("(")[0]
    return any(
        name in rule["names"]
        and rule["action"] == "SCMP_ACT_ALLOW"
        and not rule.get("args")
        and not (rule.get("includes") or {}).get("caps")
        and not (rule.get("includes") or {}).get("arches")
        for rule in profile["syscalls"]
    )


def _calls(title: str) -> Callable[[dict[str, str], dict[str, str]], Iterator[Row]]:
    def rows(covey: dict[str, str], docker: dict[str, str]) -> Iterator[Row]:
        """What Docker refuses (EPERM, ENOSYS), Covey refuses, unless Docker's newest profile has it for all."""
        profile = json.loads(PROFILE.read_text(encoding="utf-8"))
        for name, answer in covey.items():
            opened = answer not in REFUSED and docker[name] in REFUSED
            newer = opened and newest_allows(name, profile)
            why = "as Docker's newest profile" if newer else "" if answer in REFUSED else "both open"
            yield Row(f"{title} {name}", answer, docker[name], opened and not newer, why)

    return rows


def _paths(covey: dict[str, str], docker: dict[str, str]) -> Iterator[Row]:
    """writable < read-only < hidden < absent: none is further left than Docker's."""
    for path in covey:
        yield Row(path, covey[path], docker[path], STATES.index(covey[path]) < STATES.index(docker[path]))


def _devices(covey: dict[str, list[str]], docker: dict[str, list[str]]) -> Iterator[Row]:
    """Nothing is visible, or opens, that Docker's container has not."""
    for what in covey:
        more = set(covey[what]) - set(docker[what])
        yield Row(f"devices {what}", _short(covey[what]), _short(docker[what]), bool(more))


def _short(values: list[str]) -> str:
    text = " ".join(map(str, values)) or "none"
    return text if len(text) <= 44 else f"{len(values)}: {text[:34]}…"


def _namespaces(covey: dict[str, bool], docker: dict[str, bool]) -> Iterator[Row]:
    """Every namespace that is the container's own with Docker is its own here."""
    words = {True: "own", False: "the host's"}
    for kind in covey:
        yield Row(f"namespace {kind}", words[covey[kind]], words[docker[kind]], docker[kind] and not covey[kind])


def _mounts(covey: dict[str, list[str]], docker: dict[str, list[str]]) -> Iterator[Row]:
    """Each kernel mount has at least Docker's of ro, nosuid, nodev, noexec."""
    for point in covey:
        mine, other = set(covey[point]) & HARDENING, set(docker[point]) & HARDENING
        yield Row(f"mount {point}", " ".join(sorted(mine)) or "rw", " ".join(sorted(other)) or "rw", bool(other - mine))


def _cgroups(covey: dict[str, str], docker: dict[str, str]) -> Iterator[Row]:
    """No cgroup hierarchy is mounted for writing."""
    mine, other = (f"{list(found.values()).count('rw')} rw of {len(found)}" for found in (covey, docker))
    yield Row("cgroup mounts", mine, other, "rw" in covey.values())


def _rlimits(covey: dict[str, list[int]], docker: dict[str, list[int]]) -> Iterator[Row]:
    """No hard limit is above Docker's (-1: none); both give what their daemon has, unless told otherwise."""
    for name in covey:
        mine, other = (float("inf") if limits[name][1] == -1 else limits[name][1] for limits in (covey, docker))
        show = [":".join("none" if one == -1 else str(one) for one in limits[name]) for limits in (covey, docker)]
        yield Row(name, *show, mine > other)


def _one(title: str, weaker: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Iterator[Row]]:
    def rows(covey: Any, docker: Any) -> Iterator[Row]:
        yield Row(title, _shown(covey), _shown(docker), weaker(covey, docker))

    return rows


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _limit(value: str) -> float:
    return float(value) if value.isdigit() else float("inf")


#: Key of the probe's answer → the rows made of both answers, by a rule each.
RULES: dict[str, Callable[[Any, Any], Iterator[Row]]] = {
    "capabilities": _capabilities,
    "calls": _calls("call"),
    "i386 calls": _calls("i386"),
    "paths": _paths,
    "devices": _devices,
    "namespaces": _namespaces,
    "descriptors": _one("open descriptors", lambda covey, docker: bool(set(covey) - {0, 1, 2})),
    "no_new_privs": _one("no_new_privs", lambda covey, docker: covey < docker),
    "seccomp": _one("seccomp mode (2: filter)", lambda covey, docker: covey != "2"),
    "dumpable": _one("dumpable, once it runs", lambda covey, docker: covey > max(docker, 1)),
    "groups": _one("groups", lambda covey, docker: bool(set(covey) - set(docker))),
    "mounts": _mounts,
    "cgroups": _cgroups,
    "rlimits": _rlimits,
    "pids limit": _one("pids limit", lambda covey, docker: _limit(covey) > _limit(docker)),
    "oom_score_adj": _one("oom_score_adj", lambda covey, docker: covey < docker),
    "processes": _one("processes visible", lambda covey, docker: covey > docker),
    "uid_map": _one("uid map", lambda covey, docker: covey != docker and covey[1] == "0"),
}


def image() -> bytes:
    """A docker-archive of IMAGE: busybox, this machine's Python, the probe."""
    files = {**python_image.python_files(), "/py/probe.py": PROBE.read_bytes()}
    directories = sorted({str(parent) for path in files for parent in Path(path).parents} - {"/"})
    members: list[tuple[str, int, bytes | str | None]] = [(one.lstrip("/"), 0o755, None) for one in directories]
    members += [(path.lstrip("/"), 0o755 if python_image.is_program(path) else 0o644, files[path]) for path in sorted(files)]
    environment = ["PATH=/bin:/usr/bin"]
    return images.docker_archive(IMAGE, [images.busybox_rootfs_tar(), images.tar(members)], {"Env": environment})


def probe(rival: Rival, archive: bytes, **options: Any) -> dict[str, Any]:
    """What a container of ``rival`` finds; its namespaces as "is it another than that of the daemon?"."""
    client = rival.client
    client.images.load(archive)
    container = client.containers.run(IMAGE, [python_image.PYTHON, "-I", "-S", "/py/probe.py"], detach=True, **options)
    try:
        code = container.wait(timeout=60)["StatusCode"]
        out, err = (container.logs(stdout=one, stderr=not one).decode() for one in (True, False))
    finally:
        container.remove(force=True)
    if code != 0:
        raise SystemExit(f"bench: the probe in {rival.kind.name} ended with {code}: {err[-800:]}")
    found: dict[str, Any] = json.loads(out)
    daemon = rival.processes(next(iter(rival.kind.parts)))[0]
    own = {kind: link != os.readlink(f"/proc/{daemon.pid}/ns/{kind}") for kind, link in found["namespaces"].items()}
    return {**found, "namespaces": own}


def compare(covey: Mapping[str, Any], docker: Mapping[str, Any]) -> list[Row]:
    return [row for key, rule in RULES.items() for row in rule(covey[key], docker[key])]


def measure() -> tuple[list[Row], list[str]]:
    """(all rows, the versions of both)."""
    archive = image()
    with tempfile.TemporaryDirectory(prefix="covey-posture-") as name, ExitStack() as stack:
        rivals = [stack.enter_context(running(kind, Path(name))) for kind in (COVEY, DOCKER)]
        found = [probe(rival, archive) for rival in rivals]
        versions = [f"{rival.kind.name} {rival.client.version()['Version']}" for rival in rivals]
    return compare(*found), versions


def table(rows: list[Row], versions: list[str]) -> str:
    lines = [f"{'':44} {versions[0]:46} {versions[1]:46}"]
    lines += [f"{row.title:44} {row.covey:46} {row.docker:46} {row.mark}" for row in rows]
    weaker = [row.title for row in rows if row.weaker]
    lines.append(f"{len(rows)} rows; Covey is weaker in {len(weaker)}{': ' + ', '.join(weaker) if weaker else ''}")
    return "\n".join(lines)


def run(rounds: int) -> int:
    """Print the table; 1 when Covey is weaker anywhere. ``rounds`` does not matter: nothing is timed."""
    del rounds
    rows, versions = measure()
    print(table(rows, versions))
    sys.stdout.flush()
    return 1 if any(row.weaker for row in rows) else 0
