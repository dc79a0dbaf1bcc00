"""Requests that cannot be: Docker's status code, and a message that names the field. Held against the real dockerd too.

Every row says what Covey answers; ``docker`` is dockerd 20.10's code where it is another, and ``why`` says why ours is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]

IMAGE = "covey/busybox:demo"
STRICTER = "dockerd takes it and fails later, on the node"
CALLERS = "the caller's mistake, not the server's fault"


@dataclass(frozen=True)
class Row:
    """One bad request. ``{word}`` in the path is one of the things ``prepared`` made; ``~`` before it: no version is put in."""

    name: str
    method: str
    path: str
    body: Any
    status: int
    words: str
    docker: int = 0
    why: str = ""
    headers: dict[str, str] = field(default_factory=dict)


def spec(
    name: str = "bad", mode: Any = None, endpoint: Any = None, container: Any = None, task: Any = None, **rest: Any
) -> Any:
    command = {"Image": IMAGE, "Command": ["sleep", "1000"], "StopGracePeriod": 0}
    return {
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {**command, **(container or {})}, **(task or {})},
        "Mode": mode or {"Replicated": {"Replicas": 0}},
        "EndpointSpec": endpoint or {},
        **rest,
    }


def service(name: str, status: int, words: str, docker: int = 0, why: str = "", /, **changes: Any) -> Row:
    return Row(f"service: {name}", "POST", "/services/create", spec(**changes), status, words, docker, why)


def published(*ports: dict[str, Any]) -> dict[str, Any]:
    return {"Ports": [{"Protocol": "tcp", "TargetPort": 80, **port} for port in ports]}


def container(name: str, status: int, words: str, docker: int = 0, why: str = "", /, query: str = "", **changes: Any) -> Row:
    body = {"Image": IMAGE, **changes}
    return Row(f"container: {name}", "POST", f"/containers/create{query}", body, status, words, docker, why)


def filtered(noun: str, path: str, docker: int = 0, why: str = "") -> Row:
    query = quote(json.dumps({"colour": ["red"]}))
    return Row(f"{noun}: unknown filter", "GET", f"{path}filters={query}", None, 400, "invalid filter 'colour'", docker, why)


LIMIT = "TaskTemplate.Resources.Limits"
SERVICES = [
    service("bad name", 400, "DNS name component (Name)", name="a b!"),
    service("long name", 400, "63 characters or fewer (Name)", name="a" * 64),
    service("name taken", 409, "service taken already exists", name="taken"),
    service("no image", 400, "TaskTemplate.ContainerSpec.Image", container={"Image": ""}),
    service("malformed image", 400, "TaskTemplate.ContainerSpec.Image", container={"Image": "UPPER//x:y:z"}),
    service("negative replicas", 400, "Mode.Replicated.Replicas", mode={"Replicated": {"Replicas": -1}}),
    service("replicas of a wrong type", 400, "Mode.Replicated.Replicas", mode={"Replicated": {"Replicas": "3"}}),
    service("two modes", 400, "(Mode)", mode={"Global": {}, "Replicated": {"Replicas": 1}}),
    service("negative cpus", 400, f"{LIMIT}.NanoCPUs", task={"Resources": {"Limits": {"NanoCPUs": -5}}}),
    service("too little memory", 400, f"{LIMIT}.MemoryBytes", task={"Resources": {"Limits": {"MemoryBytes": 1000}}}),
    service("negative reservation", 400, "Reservations.MemoryBytes", task={"Resources": {"Reservations": {"MemoryBytes": -5}}}),
    service(
        "reservation over limit",
        400,
        "Reservations.MemoryBytes",
        201,
        STRICTER,
        task={"Resources": {"Limits": {"MemoryBytes": 10 << 20}, "Reservations": {"MemoryBytes": 20 << 20}}},
    ),
    service(
        "one port twice",
        400,
        "Ports[1].PublishedPort",
        endpoint=published({"PublishedPort": 8555}, {"PublishedPort": 8555, "TargetPort": 81}),
    ),
    service("port of another service", 400, "already in use by service 'taken'", endpoint=published({"PublishedPort": 8777})),
    service("port too high", 400, "Ports[0].TargetPort", 201, STRICTER, endpoint=published({"TargetPort": 80000})),
    service("no target port", 400, "Ports[0].TargetPort", 201, STRICTER, endpoint=published({"TargetPort": 0})),
    service("unknown protocol", 400, "Ports[0].Protocol", 201, STRICTER, endpoint=published({"Protocol": "xyz"})),
    service(
        "dnsrr with ingress", 400, "Ports[0].PublishMode", endpoint={"Mode": "dnsrr", **published({"PublishedPort": 8555})}
    ),
    service(
        "unknown constraint key",
        400,
        "Placement.Constraints[0]",
        201,
        "dockerd never places it",
        task={"Placement": {"Constraints": ["node.colour==red"]}},
    ),
    service(
        "malformed constraint",
        400,
        "Placement.Constraints[0]",
        500,
        CALLERS,
        task={"Placement": {"Constraints": ["node.role~manager"]}},
    ),
    service(
        "unknown network",
        404,
        "network nosuch not found (TaskTemplate.Networks)",
        500,
        CALLERS,
        task={"Networks": [{"Target": "nosuch"}]},
    ),
    service(
        "unknown secret",
        400,
        "secret not found: nosuch (TaskTemplate.ContainerSpec.Secrets)",
        container={
            "Secrets": [
                {"SecretID": "nosuch", "SecretName": "nosuch", "File": {"Name": "x", "UID": "0", "GID": "0", "Mode": 292}}
            ]
        },
    ),
    service("negative restart delay", 400, "RestartPolicy.Delay", task={"RestartPolicy": {"Delay": -1}}),
    service("unknown restart condition", 400, "RestartPolicy.Condition", task={"RestartPolicy": {"Condition": "sometimes"}}),
    service("unknown update order", 400, "UpdateConfig.Order", UpdateConfig={"Parallelism": 1, "Order": "sideways"}),
    service("failure ratio over 1", 400, "UpdateConfig.MaxFailureRatio", UpdateConfig={"MaxFailureRatio": 2}),
    service(
        "bind without source",
        400,
        "Mounts[0].Source",
        201,
        STRICTER,
        container={"Mounts": [{"Type": "bind", "Source": "", "Target": "/x"}]},
    ),
    service(
        "one target twice",
        400,
        "Mounts[1].Target",
        container={"Mounts": [{"Type": "tmpfs", "Target": "/x"}, {"Type": "tmpfs", "Target": "/x"}]},
    ),
    service(
        "negative health interval",
        400,
        "Healthcheck.Interval",
        container={"Healthcheck": {"Test": ["CMD", "x"], "Interval": -5}},
    ),
]

BODIES = [
    Row("body: malformed JSON", "POST", "/services/create", b'{"Name": ', 400, "invalid JSON"),
    Row("body: not an object", "POST", "/services/create", b"[]", 400, "expected an object"),
    Row("body: empty", "POST", "/services/create", b"", 400, "EOF while reading request body"),
    Row("body: too large", "POST", "/services/create", b'{"Name":"' + b"x" * (5 << 20) + b'"}', 400, "larger than"),
    Row(
        "body: wrong content type",
        "POST",
        "/services/create",
        spec(),
        400,
        "Content-Type header (text/plain)",
        201,
        "dockerd checks it on container routes only; newer ones everywhere",
        {"Content-Type": "text/plain"},
    ),
    Row(
        "archive: not a tar",
        "POST",
        "/images/load",
        b"garbage",
        400,
        "archive",
        200,
        "dockerd says it in a stream that began with 200",
        {"Content-Type": "application/x-tar"},
    ),
]

UPDATES = [
    Row("update: no version", "POST", "/services/taken/update", spec("taken"), 400, "version"),
    Row("update: malformed version", "POST", "/services/taken/update?version=x", spec("taken"), 400, "version"),
    Row(
        "update: out of sequence",
        "POST",
        "/services/taken/update?version=1",
        spec("taken"),
        409,
        "update out of sequence",
        500,
        CALLERS,
    ),
    Row("update: another name", "POST", "/services/taken/update?version={version}", spec("other"), 501, "renaming services"),
    Row(
        "update: another mode",
        "POST",
        "/services/taken/update?version={version}",
        spec("taken", {"Global": {}}),
        501,
        "service mode change",
    ),
    Row(
        "update: unknown service", "POST", "/services/nosuch/update?version=1", spec("nosuch"), 404, "service nosuch not found"
    ),
    Row(
        "node: unknown availability",
        "POST",
        "/nodes/{node}/update?version={node_version}",
        {"Role": "manager", "Availability": "asleep"},
        400,
        "Availability",
    ),
    Row(
        "node: unknown role",
        "POST",
        "/nodes/{node}/update?version={node_version}",
        {"Role": "boss", "Availability": "active"},
        400,
        "Role",
    ),
    Row("node: removal of the manager", "DELETE", "/nodes/{node}", None, 400, "must be demoted to worker before removal"),
    Row(
        "swarm: a second init",
        "POST",
        "/swarm/init",
        {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "127.0.0.1"},
        503,
        "already part of a swarm",
    ),
]

LOOKS = [
    *(
        Row(f"{noun}: unknown", "GET", f"/{noun}s/nosuch", None, 404, "nosuch")
        for noun in ("service", "task", "node", "secret", "config", "network", "volume")
    ),
    Row("container: unknown", "GET", "/containers/nosuch/json", None, 404, "No such container: nosuch"),
    Row("image: unknown", "GET", "/images/nosuch/json", None, 404, "No such image: nosuch:latest"),
    *(filtered(noun, f"/{noun}s?") for noun in ("service", "task", "node", "secret", "config", "network", "volume")),
    filtered("container", "/containers/json?"),
    filtered("image", "/images/json?"),
    filtered("events", "/events?until=1&", 200, "dockerd checks no filter of events"),
    Row("filter: not JSON", "GET", "/services?filters=%7Bx", None, 400, "invalid filter"),
    Row("route: unknown", "GET", "/nosuch", None, 404, "page not found"),
    Row("route: another method", "PUT", "/services/create", None, 405, "method PUT not allowed", 404, "405 says more"),
    Row("version: too old", "GET", "~/v1.0/info", None, 400, "client version 1.0 is too old"),
    Row("version: too new", "GET", "~/v9.99/info", None, 400, "client version 9.99 is too new"),
    Row("version: not a number", "GET", "~/vx/info", None, 404, "page not found"),
    Row("logs: no stream", "GET", "/containers/taken/logs", None, 400, "choose at least one stream"),
]

THINGS = [
    container("no image", 400, "(Image)", Image=""),
    container("unknown image", 404, "No such image: nosuch:1", Image="nosuch:1"),
    container("malformed image", 400, "invalid reference format", Image="UPPER//x"),
    container("a wrong type", 400, "Image", 500, CALLERS, Image=7),
    container("bad name", 400, "Invalid container name (a b)", query="?name=a%20b"),
    container("name taken", 409, 'The container name "/taken" is already in use', query="?name=taken"),
    container("negative memory", 400, "HostConfig.Memory", HostConfig={"Memory": -5}),
    container(
        "unknown port protocol",
        400,
        "HostConfig.PortBindings",
        201,
        STRICTER,
        HostConfig={"PortBindings": {"80/xyz": [{"HostPort": "80"}]}},
    ),
    container(
        "host port too high", 400, "HostConfig.PortBindings", HostConfig={"PortBindings": {"80/tcp": [{"HostPort": "99999"}]}}
    ),
    container("malformed bind", 400, "'a:b:c:d'", 500, CALLERS, HostConfig={"Binds": ["a:b:c:d"]}),
    container("unknown restart policy", 400, "sometimes", HostConfig={"RestartPolicy": {"Name": "sometimes"}}),
    Row("container: unknown signal", "POST", "/containers/taken/kill?signal=SIGWHAT", None, 400, "SIGWHAT"),
    Row("container: removal while it runs", "DELETE", "/containers/taken", None, 409, "container"),
    Row("container: started again", "POST", "/containers/taken/start", None, 304, ""),
    Row("exec: no command", "POST", "/containers/taken/exec", {"Cmd": []}, 400, "No exec command specified"),
    Row("network: no name", "POST", "/networks/create", {"Name": ""}, 400, "(Name)", 500, CALLERS),
    Row(
        "network: malformed subnet",
        "POST",
        "/networks/create",
        {"Name": "bad", "IPAM": {"Config": [{"Subnet": "10.1.2.3.4/8"}]}},
        400,
        "IPAM.Config[0].Subnet",
        500,
        CALLERS,
    ),
    Row("network: removal of a predefined one", "DELETE", "/networks/bridge", None, 403, "pre-defined network"),
    Row("volume: bad name", "POST", "/volumes/create", {"Name": "a/b"}, 400, "a/b"),
    Row("secret: no name", "POST", "/secrets/create", {"Name": "", "Data": "cw=="}, 400, "(Name)"),
    Row("secret: malformed base64", "POST", "/secrets/create", {"Name": "bad", "Data": "***"}, 400, "base64"),
    Row(
        "secret: too large", "POST", "/secrets/create", {"Name": "bad", "Data": "AAAA" * 180000}, 400, "less than 512000 bytes"
    ),
    Row("secret: name taken", "POST", "/secrets/create", {"Name": "taken", "Data": "cw=="}, 409, "secret taken already exists"),
    Row(
        "config: too large", "POST", "/configs/create", {"Name": "bad", "Data": "AAAA" * 350000}, 400, "less than 1024000 bytes"
    ),
    Row("image: removal in use", "DELETE", f"/images/{IMAGE}", None, 409, "unable to remove"),
    Row("image: malformed tag", "POST", f"/images/{IMAGE}/tag?repo=UPPER&tag=x", None, 400, "must be lowercase", 500, CALLERS),
]

#: dockerd looks fifteen seconds for a plugin before it says the same.
PLUGINS = [
    Row(
        f"{noun}: unknown driver",
        "POST",
        f"/{noun}s/create",
        {"Name": "bad", "Driver": "nosuch"},
        404,
        'plugin "nosuch" not found',
    )
    for noun in ("network", "volume")
]

COMPARED = [*SERVICES, *BODIES, *UPDATES, *LOOKS, *THINGS]
ROWS = [*COMPARED, *PLUGINS]


def prepare(endpoint: Any) -> dict[str, str]:
    """A service, a secret and a running container called ``taken``; what paths refer to."""
    made = spec("taken", endpoint=published({"PublishedPort": 8777}))
    endpoint.json("POST", "/services/create", made)
    endpoint.json("POST", "/secrets/create", {"Name": "taken", "Data": "cw=="})
    endpoint.json("POST", "/containers/create?name=taken", {"Image": IMAGE, "Cmd": ["sleep", "1000"]})
    endpoint.json("POST", "/containers/taken/start")
    (node,) = [one for one in endpoint.json("GET", "/nodes") if one["Spec"]["Role"] == "manager"]
    version = endpoint.json("GET", "/services/taken")["Version"]["Index"]
    return {"version": str(version), "node": node["ID"], "node_version": str(node["Version"]["Index"])}


def tidy(endpoint: Any) -> None:
    for path in ("/services/taken", "/secrets/taken", "/containers/taken?force=1"):
        endpoint.call("DELETE", f"/v1.41{path}")
    endpoint.wait("its tasks are gone", lambda: not endpoint.json("GET", "/containers/json?all=1"))


def send(endpoint: Any, row: Row, words: dict[str, str]) -> Any:
    """The answer; what a daemon made after all is removed again."""
    path = row.path
    for word, value in words.items():
        path = path.replace("{" + word + "}", value)
    path = path[1:] if path.startswith("~") else f"/v1.41{path}"
    answer = endpoint.call(row.method, path, row.body, row.headers)
    if answer.status == 201:
        made = json.loads(answer.text)
        endpoint.call("DELETE", f"/v1.41/{row.path.split('/')[1]}/{made.get('ID') or made.get('Id')}")
    return answer


@pytest.fixture(scope="module")
def words(covey: Any) -> Iterator[dict[str, str]]:
    yield prepare(covey)
    tidy(covey)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_covey_refuses_with_a_code_and_the_field(row: Row, covey: Any, words: dict[str, str]) -> None:
    answer = send(covey, row, words)
    assert answer.status == row.status, answer
    assert row.words in answer.text
    assert "Traceback" not in answer.text


def test_dockerd_answers_with_the_same_codes_but_for_the_differences_given(
    dockerd: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = prepare(dockerd)
    try:
        answers = {row.name: send(dockerd, row, words) for row in COMPARED}
    finally:
        tidy(dockerd)
    wrong = [
        (row.name, answers[row.name], "expected", row.docker or row.status)
        for row in COMPARED
        if answers[row.name].status != (row.docker or row.status)
    ]
    assert not wrong
    assert all(row.why for row in COMPARED if row.docker)
    with capsys.disabled():
        print("\nbad requests that Covey and dockerd 20.10 answer with different codes:")
        for row in COMPARED:
            if row.docker:
                print(f"  {row.name:38} Covey {row.status}, dockerd {row.docker}: {row.why}")
