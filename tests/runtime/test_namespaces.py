"""Which namespaces a container gets of its own, shares, or joins by path."""

from __future__ import annotations

import os
import signal

import pytest

from .conftest import copied

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
KINDS = ("pid", "net", "ipc", "uts", "mnt", "cgroup")
OCI = {"net": "network", "mnt": "mount"}
_LIST = f"for n in {' '.join(KINDS)}; do readlink /proc/self/ns/$n; done"


def namespaces(pid: int | str) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS}


async def test_all_six_are_the_containers_own(boxes):
    result = await boxes.sh(_LIST)
    inside = dict(zip(KINDS, result.out.split()))
    ours = namespaces("self")
    assert len(inside) == len(KINDS), result
    assert {kind for kind in KINDS if inside[kind] == ours[kind]} == set()


@pytest.mark.parametrize("kind", ["pid", "net", "ipc", "uts", "cgroup"])
async def test_one_left_out_is_the_hosts(boxes, kind):
    linux = {"namespaces": [{"type": OCI.get(k, k)} for k in KINDS if k != kind]}
    result = await boxes.sh(_LIST, linux=linux, hostname=None if kind == "uts" else "box")
    inside, ours = dict(zip(KINDS, result.out.split())), namespaces("self")
    assert [k for k in KINDS if inside[k] == ours[k]] == [kind]


@pytest.mark.parametrize("kind", ["net", "ipc", "pid", "uts"])
async def test_join_by_path(boxes, kind):
    first = await boxes.start(["sleep", "60"])
    theirs = os.readlink(f"/proc/{first.init_pid}/ns/{kind}")
    path = f"/proc/{first.init_pid}/ns/{kind}"
    spaces = [{"type": OCI.get(k, k), **({"path": path} if k == kind else {})} for k in KINDS]
    result = await boxes.sh(_LIST, linux={"namespaces": spaces}, hostname="box")
    assert dict(zip(KINDS, result.out.split()))[kind] == theirs


async def test_path_of_the_wrong_type_is_refused(boxes):
    from worker.runtime.errors import RuntimeFault

    spaces = [{"type": "mount"}, {"type": "network", "path": "/proc/self/ns/uts"}]
    with pytest.raises(RuntimeFault, match="uts namespace, not a network one") as caught:
        await boxes.make(["true"], linux={"namespaces": spaces}, hostname=None)
    assert "join_namespace /proc/self/ns/uts" in caught.value.step


async def test_pid_one_and_names(boxes):
    result = await boxes.sh("echo $$; hostname; cat /proc/sys/kernel/domainname", domainname="example.org")
    assert result.out.split() == ["1", "box", "example.org"]


async def test_network_is_there_between_create_and_start(boxes):
    """The daemon plugs the link in while the container waits."""
    box = await boxes.make(["true"])
    assert os.stat(f"/proc/{box.init_pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    assert (await box.shim.state())["state"] == "created"


async def test_user_namespace(boxes):
    linux = {
        "namespaces": [{"type": OCI.get(k, k)} for k in (*KINDS, "user")],
        "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
        "gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
    }
    box = await boxes.start(["sh", "-c", "id -u; cat /proc/self/uid_map; echo x >/dev/null && sleep 60"], linux=linux)
    assert os.stat(f"/proc/{box.init_pid}").st_uid == 100000
    code, out, _ = await box.run_exec("e", ["sh", "-c", "id -u; id -g; readlink /proc/self/ns/user"])
    assert (code, out.split()[:2]) == (0, [b"0", b"0"])
    assert out.split()[2].decode() == os.readlink(f"/proc/{box.init_pid}/ns/user")
    await box.shim.kill(signal.SIGKILL)
    assert (await box.exit())["code"] == 137


async def test_a_user_namespace_in_directories_that_are_closed_to_its_root(boxes, tmp_path):
    """The rootfs and a bind's source lie below 0700 directories of the host, which the mapped root may not pass."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    root = copied(boxes.rootfs, closed / "root")
    for base, directories, files in os.walk(root):
        for name in (".", *directories, *files):
            os.chown(os.path.join(base, name), 100000, 100000, follow_symlinks=False)
    source = closed / "source"
    source.mkdir(mode=0o755)
    (source / "file").write_text("bound\n")
    linux = {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup", "user")],
        "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
        "gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
    }
    bind = {"destination": "/tmp/bound", "type": "bind", "source": str(source), "options": ["rbind"]}
    script = "id -u; cat /tmp/bound/file; stat -c %u /bin/busybox /tmp/bound; touch /made && stat -c %u /made; echo end"
    result = await boxes.sh(script, root={"path": str(root)}, linux=linux, mounts=[bind])
    assert result.out.split() == ["0", "bound", "0", "65534", "0", "end"], result
    assert (root / "made").stat().st_uid == 100000
    assert sorted(os.listdir(closed)) == ["root", "source"]
