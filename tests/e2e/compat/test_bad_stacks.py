"""Stack files that cannot be: ``cluster stack deploy`` ends with a code other than 0 and one line, and makes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

LEVELS = "\n".join(f"x-{this}: &{this} [{', '.join([f'*{below}'] * 9)}]" for below, this in zip("abcdefgh", "bcdefghi"))
BOMB = f"x-a: &a [x, x, x, x, x, x, x, x, x]\n{LEVELS}\nservices: {{a: {{image: x}}}}\n"

FILES = {
    "unknown key": ("services: {a: {image: x, colour: red}}", "services.a.colour"),
    "no services": ("servces: {a: {image: x}}", "services"),
    "a key twice": ("services:\n  a: {image: x}\n  a: {image: y}\n", "line 3, column 3: key 'a' is given twice"),
    "port too high": ('services: {a: {image: x, ports: ["99999:80"]}}', "services.a.ports.0"),
    "malformed port": ('services: {a: {image: x, ports: ["a:b:c:d"]}}', "services.a.ports.0"),
    "replicas not a number": ("services: {a: {image: x, deploy: {replicas: many}}}", "services.a.deploy.replicas"),
    "no image": ("services: {a: {command: x}}", "services.a.image"),
    "not YAML": ("services: {a: [}", "line 1, column 16"),
    "a list": ("[1, 2]", "must be a mapping"),
    "empty": ("", "empty"),
    "undeclared network": ("services: {a: {image: x, networks: [nosuch]}}", "services.a.networks: 'nosuch'"),
    "undeclared volume": ('services: {a: {image: x, volumes: ["nosuch:/x"]}}', "services.a.volumes.0"),
    "missing variable": ('services: {a: {image: "${NOSUCH:?must be set}"}}', "NOSUCH is missing a value: must be set"),
    "malformed variable": ('services: {a: {image: "${"}}', "services.a.image: invalid interpolation"),
    "malformed duration": ("services: {a: {image: x, stop_grace_period: soon}}", "services.a.stop_grace_period: 'soon'"),
    "malformed size": ("services: {a: {image: x, deploy: {resources: {limits: {memory: lots}}}}}", "limits.memory: 'lots'"),
    "aliases that explode": (BOMB, "aliases expand to more than"),
    "alias in itself": ("services: &a\n  a: *a\n", "contains itself"),
    "tag that calls": ('services: {a: {image: !!python/object/apply:os.system ["x"]}}', "python/object/apply"),
    "bad service name": ('services: {"a b": {image: x}}', "services.a b: invalid name"),
    "not supported": ("services: {a: {image: x, privileged: true}}", "services.a.privileged"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_malformed_file_is_refused_in_one_line(name: str, cluster: Any, tmp_path: Path) -> None:
    text, words = FILES[name]
    file = tmp_path / "stack.yml"
    file.write_text(text)
    done = cluster.run("stack", "deploy", "--detach", "--compose-file", str(file), "bad", timeout=10)
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("cluster: ")
    assert words in line


def test_a_file_that_is_not_there(cluster: Any) -> None:
    done = cluster.run("stack", "deploy", "--compose-file", "/nosuch.yml", "bad")
    assert done.returncode == 1
    assert done.stderr == "cluster: cannot read compose file /nosuch.yml: No such file or directory\n"
    assert cluster.rows("stack", "ls", "--format", "json") == []
