"""Containers in a user namespace, as a daemon with --userns-remap gives them: who owns what, inside and on the host."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey.errors import InvalidArgument
from worker.containers import remap
from worker.containers.remap import Range, Remap

from .conftest import Node, loaded

IMAGE = "busybox"

FIRST = 231072
IDS = {"uids": [[0, FIRST, 65536]], "gids": [[0, FIRST, 65536]]}


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory, archive: bytes) -> Iterator[Node]:
    with loaded(Node(tmp_path_factory.mktemp("userns"), ids=IDS, refused=["privileged"]), archive) as node:
        yield node


@pytest.mark.root
def test_root_inside_is_somebody_else_outside(mapped: Node):
    ident = mapped.run("--name", "who", IMAGE, "sh", "-c", "touch /made; mkdir /dir; chown 33:44 /dir; exec sleep 60")
    pid = mapped.state(ident)["Pid"]
    assert os.stat(f"/proc/{pid}").st_uid == FIRST
    out = mapped.out(
        "exec", "who", "sh", "-c", "id -u; cat /proc/self/uid_map; stat -c %u:%g /bin/busybox /etc/passwd /made /dir"
    )
    first, table, *owners = out.splitlines()
    assert (first, table.split(), owners) == ("0", ["0", str(FIRST), "65536"], ["0:0", "0:0", "0:0", "33:44"])
    upper = Path(mapped.root, "data/rootfs/containers", ident, "upper")
    assert [os.stat(upper / name).st_uid - FIRST for name in ("made", "dir")] == [0, 33]
    assert mapped.out("exec", "-u", "1000", "who", "id", "-u") == "1000"
    assert mapped.out("diff", "who").split()[::2].count("A") >= 2
    mapped.docker("rm", "-f", "who")


@pytest.mark.root
def test_the_node_says_so(mapped: Node):
    assert "name=userns" in mapped.out("info", "-f", "{{.SecurityOptions}}")


@pytest.mark.root
def test_the_image_is_not_changed_and_its_files_can_be(mapped: Node):
    script = "echo changed >/etc/passwd && stat -c %u /etc/passwd && hostname && cat /etc/hostname && stat -c %u /etc/hosts"
    owner, name, same, hosts = mapped.out("run", "--rm", "--hostname", "box", IMAGE, "sh", "-c", script).splitlines()
    assert (owner, name, same, hosts) == ("0", "box", "box", "0")
    for layer in Path(mapped.root, "data", "images").rglob("etc/passwd"):
        assert layer.stat().st_uid == 0
        assert "changed" not in layer.read_text()


@pytest.mark.root
def test_volumes_are_its_roots_and_binds_stay_as_they_are(mapped: Node, tmp_path: Path):
    (tmp_path / "file").write_text("host\n")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "bound").mkdir()
    (closed / "bound/file").write_text("host\n")
    script = "touch /data/x && stat -c %u:%g /data /data/x /bound/file; cat /bound/file; touch /bound/y 2>&1 || echo refused"
    out = mapped.out("run", "--rm", "-v", "vol:/data", "-v", f"{closed}/bound:/bound", IMAGE, "sh", "-c", script)
    assert out.splitlines()[:4] == ["0:0", "0:0", "65534:65534", "host"]
    assert out.endswith("refused")
    place = Path(mapped.out("volume", "inspect", "-f", "{{.Mountpoint}}", "vol"))
    assert os.stat(place).st_uid == FIRST
    assert os.stat(place / "x").st_uid == FIRST
    mapped.docker("volume", "rm", "vol")


@pytest.mark.root
def test_a_volume_filled_from_the_image_keeps_the_owners_of_the_image(mapped: Node):
    out = mapped.out("run", "--rm", "-v", "filled:/home", IMAGE, "stat", "-c", "%u:%g", "/home")
    assert out == "0:0"
    mapped.docker("volume", "rm", "filled")


@pytest.mark.root
@pytest.mark.parametrize("running", [True, False])
def test_copies_carry_the_owners_as_the_container_sees_them(mapped: Node, running: bool):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as packed:
        member = tarfile.TarInfo("in")
        member.uid, member.gid = 7, 8
        packed.addfile(member)
    verb = "run" if running else "create"
    detached = ["-d"] if running else []
    mapped.docker(verb, *detached, "--name", "copy", IMAGE, "sleep", "60")
    mapped.docker("cp", "-", "copy:/", text=archive.getvalue().decode())
    with tarfile.open(fileobj=io.BytesIO(mapped.docker("cp", "copy:/in", "-").stdout.encode())) as packed:
        assert [(one.name, one.uid, one.gid) for one in packed] == [("in", 7, 8)]
    if not running:
        mapped.docker("start", "copy")
    assert mapped.out("exec", "copy", "stat", "-c", "%u:%g", "/in") == "7:8"
    mapped.docker("rm", "-f", "copy")


@pytest.mark.root
def test_the_hosts_user_namespace_on_request(mapped: Node):
    out = mapped.out("run", "--rm", "--userns=host", IMAGE, "cat", "/proc/self/uid_map")
    assert out.split() == ["0", "0", "4294967295"]


@pytest.mark.root
def test_one_of_its_own_by_the_api(mapped: Node):
    """Where the daemon has ids, private means these; the CLI does not know the word."""
    made = mapped.call("POST", "/containers/create?name=own", {"Image": IMAGE, "HostConfig": {"UsernsMode": "private"}})
    assert made["Id"]
    assert mapped.inspect("own")["HostConfig"]["UsernsMode"] == "private"
    mapped.docker("rm", "own")
    bad = mapped.call("POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"UsernsMode": "mine"}})
    assert "invalid user namespace mode: mine" in bad["message"]


@pytest.mark.root
def test_a_shared_network_shares_the_user_namespace(mapped: Node):
    ident = mapped.run("--name", "first", IMAGE, "sleep", "60")
    pid = mapped.state(ident)["Pid"]
    script = "readlink /proc/self/ns/user; readlink /proc/self/ns/net"
    out = mapped.out("run", "--rm", "--network", "container:first", IMAGE, "sh", "-c", script)
    assert out.split() == [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("user", "net")]
    mapped.docker("rm", "-f", "first")


@pytest.mark.root
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "host"], "cannot share the host's network namespace when user namespaces are enabled"),
        (["--pid", "host"], "cannot share the host PID namespace when user namespaces are enabled"),
        (["--ipc", "host"], "cannot share the host IPC namespace when user namespaces are enabled"),
        (["--privileged"], "privileged mode is incompatible with user namespaces"),
        (["--privileged", "--userns=host"], "--no-privileged"),
    ],
)
def test_what_cannot_be_with_it(mapped: Node, arguments: list[str], words: str):
    done = mapped.docker("create", *arguments, IMAGE, "true", code=1)
    assert words in done.stderr


@pytest.mark.root
def test_a_privileged_exec_is_refused_by_the_policy(mapped: Node):
    mapped.run("--name", "plain", IMAGE, "sleep", "60")
    done = mapped.docker("exec", "--privileged", "plain", "true", code=1)
    assert "ExecConfig.Privileged is refused by this node's policy" in done.stderr
    mapped.docker("rm", "-f", "plain")


@pytest.mark.root
def test_a_container_keeps_its_ids_when_the_daemon_changes(mapped: Node):
    """A daemon without the option starts what was made with it as it was made."""
    mapped.docker("create", "--name", "kept", IMAGE, "sh", "-c", "cat /proc/self/uid_map; stat -c %u /bin/busybox")
    mapped.kill(15)
    ids = mapped.options.pop("ids")
    try:
        mapped.start()
        assert mapped.out("start", "-a", "kept").split() == ["0", str(FIRST), "65536", "0"]
        assert mapped.out("run", "--rm", IMAGE, "cat", "/proc/self/uid_map").split()[1] == "0"
    finally:
        mapped.options["ids"] = ids
        mapped.docker("rm", "-f", "kept")
        mapped.kill(15)
        mapped.start()


def test_ranges_follow_each_other_and_broken_lines_count_for_nothing():
    text = "other:1:5\nme:100000:10\n# me:1:1\nme:x:1\nme:200000:5:9\nme:4294967295:5\n1000:300000:20\nme:400000:0\n"
    found = remap.ranges(text, {"me", "1000"}, "/etc/subuid", "--userns-remap me")
    assert found == (Range(0, 100000, 10), Range(10, 300000, 20))
    assert [remap.outside(found, number) for number in (0, 9, 10, 29)] == [100000, 100009, 300000, 300019]
    assert [remap.inside(found, number) for number in (100000, 300019, 0, 99)] == [0, 29, 65534, 65534]
    with pytest.raises(InvalidArgument, match="beyond the 30 ids"):
        remap.outside(found, 30)
    kept = Remap(found, found)
    assert remap.from_lists(kept.as_lists()) == kept
    assert remap.map_text(found) == "0 100000 10\n10 300000 20\n"
    with pytest.raises(InvalidArgument, match=r"/etc/subgid has no ids for you: add a line such as you:165536:65536"):
        remap.ranges(text, {"you", "77"}, "/etc/subgid", "--userns-remap you")


@pytest.mark.parametrize(
    ("option", "split"), [("default", ("dockremap", "")), ("me", ("me", "")), ("1000:staff", ("1000", "staff"))]
)
def test_the_options_forms(option: str, split: tuple[str, str]):
    assert remap.split(option) == split


@pytest.mark.parametrize("option", ["", ":", "me:", ":group"])
def test_forms_that_are_none(option: str):
    with pytest.raises(InvalidArgument, match="default, USER or USER:GROUP"):
        remap.split(option)


def test_a_user_that_is_not_there_is_named():
    from worker.containers.surroundings import read_remap

    with pytest.raises(InvalidArgument, match=r"no user 'covey-no-such-user'.*useradd"):
        read_remap("covey-no-such-user")
