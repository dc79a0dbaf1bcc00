"""``cluster`` against a scripted swarm on a real socket: lists, creation and its progress, stacks, errors."""

import json
import textwrap

import pytest

from covey.engine_api.answers import Empty, Stream, created
from covey.engine_api.framing import encode
from covey.errors import Conflict, NotFound, Unavailable

NODES = [
    {
        "ID": f"n{number}",
        "Spec": {"Availability": "active", "Role": role, "Labels": {}},
        "Description": {"Hostname": name, "Engine": {"EngineVersion": "0.1.0"}},
        "Status": {"State": state, "Addr": f"10.0.0.{number}"},
        "Version": {"Index": 7},
        **({"ManagerStatus": {"Leader": True, "Reachability": "reachable"}} if role == "manager" else {}),
    }
    for number, name, role, state in ((1, "m1", "manager", "ready"), (2, "w1", "worker", "ready"), (3, "w2", "worker", "down"))
]


class Swarm:
    """Services and networks as they are made; every task of a service goes the way of ``lives``, a state a poll."""

    def __init__(self, daemon):
        self.services, self.networks, self.polls = {}, {}, {}
        self.lives = [["preparing", "running"]]
        self.logs = b""
        self.daemon = daemon
        daemon.handlers.update(
            system_info=lambda call: {"Swarm": {"NodeID": "n1", "ControlAvailable": True, "LocalNodeState": "active"}},
            node_list=lambda call: NODES,
            service_list=self.list,
            service_create=self.create,
            service_inspect=lambda call: self.find(call),
            service_update=self.update,
            service_delete=self.delete,
            task_list=self.tasks,
            task_inspect=lambda call: {"ID": call.params["id"], "Status": {"ContainerStatus": {"ContainerID": "c1"}}},
            container_logs=self.log,
            network_list=lambda call: list(self.networks.values()),
            network_create=self.network,
            network_delete=self.delete_network,
            secret_list=lambda call: [],
            config_list=lambda call: [],
        )

    def find(self, call):
        for service in self.services.values():
            if call.params["id"] in (service["ID"], service["Spec"]["Name"]):
                return service
        raise NotFound(f"service {call.params['id']} not found")

    def list(self, call):
        wanted = call.filters().get("label", [])
        return [one for one in self.services.values() if all(_labelled(one["Spec"]["Labels"], text) for text in wanted)]

    def create(self, call, body):
        if body["Name"] in self.services:
            raise Conflict(f"name conflicts with an existing object: service {body['Name']} already exists")
        self.services[body["Name"]] = {"ID": f"id-{body['Name']}", "Version": {"Index": 3}, "Spec": body}
        return created({"ID": f"id-{body['Name']}", "Warnings": ["a bridge on each node"] if self.networks else None})

    def update(self, call, body):
        service = self.find(call)
        assert call.query["version"] == str(service["Version"]["Index"])
        service["Spec"], service["Version"] = body, {"Index": service["Version"]["Index"] + 1}
        return {"Warnings": None}

    def delete(self, call):
        del self.services[self.find(call)["Spec"]["Name"]]
        return Empty(200)

    def network(self, call, body):
        self.networks[body["Name"]] = {"Id": f"net-{body['Name']}", "Scope": "swarm", **body}
        return created({"Id": f"net-{body['Name']}", "Warning": "a bridge on each node"})

    def delete_network(self, call):
        self.networks = {name: one for name, one in self.networks.items() if one["Id"] != call.params["id"]}

    def tasks(self, call):
        if "service" not in call.filters():
            return [self.task(one, 1, 0, ["shutdown"], 0) for one in self.list(call)]
        (reference,) = call.filters()["service"]
        service = next((one for one in self.services.values() if one["ID"] == reference), None)
        if service is None:
            # As dockerd: a filter that names no service is a service that is not found.
            raise NotFound(f"service {reference} not found")
        poll = self.polls[reference] = self.polls.get(reference, -1) + 1
        count = service["Spec"]["Mode"]["Replicated"]["Replicas"]
        return [self.task(service, slot, attempt, life, poll)
                for slot in range(1, count + 1) for attempt, life in enumerate(self.lives) if poll >= attempt]  # fmt: skip

    def task(self, service, slot, attempt, life, poll):
        state = life[min(poll - attempt, len(life) - 1)]
        over = state in ("failed", "rejected")
        error = {"failed": "task: non-zero exit (3)", "rejected": "No such image: i", "pending": "no suitable node"}.get(state)
        return {
            "ID": f"{service['ID']}.{slot}.{attempt}",
            "ServiceID": service["ID"],
            "Slot": slot,
            "NodeID": "n2",
            "CreatedAt": f"2026-01-01T00:00:{attempt:02}Z",
            "DesiredState": "shutdown" if over else "running",
            "Spec": service["Spec"]["TaskTemplate"],
            "Status": {"State": state, "Timestamp": "2026-01-01T00:00:00Z", **({"Err": error} if error else {})},
        }

    def log(self, call):
        async def chunks():
            yield self.logs

        return Stream(chunks(), "application/vnd.docker.multiplexed-stream")


def _labelled(labels, text):
    key, equals, value = text.partition("=")
    return key in labels and (not equals or labels[key] == value)


@pytest.fixture
def swarm(daemon, monkeypatch):
    monkeypatch.setattr("cli.progress.POLL", 0.02)
    monkeypatch.setattr("cli.converge.STABLE", 0.1)
    return Swarm(daemon)


def test_node_ls(cluster, swarm):
    assert cluster("node", "ls").out == textwrap.dedent("""\
        ID     HOSTNAME   STATUS   AVAILABILITY   MANAGER STATUS   ENGINE VERSION
        n1 *   m1         Ready    Active         Leader           0.1.0
        n2     w1         Ready    Active                          0.1.0
        n3     w2         Down     Active                          0.1.0
    """)
    assert cluster("node", "ls", "-q").out == "n1\nn2\nn3\n"
    assert cluster("node", "ls", "--format", "{{.Hostname}} {{.Self}}").out.splitlines()[0] == "m1 true"


def test_create_tells_every_transition_once_and_waits(cluster, swarm):
    done = cluster("service", "create", "--name", "web", "--replicas", "2", "i")
    lines = [line.rpartition(" (")[0] for line in done.out.splitlines()[1:]]
    assert done.status == 0
    assert done.out.splitlines()[0] == "id-web"
    assert lines == ["web.1 running on w1", "web.2 running on w1", "web converged: 2/2 running"]
    assert cluster("service", "ls").out.splitlines()[1].split() == ["id-web", "web", "replicated", "0/0", "i"]


def test_detached_and_quiet(cluster, swarm):
    assert cluster("service", "create", "--name", "a", "-d", "i").out == "id-a\n"
    assert "task_list" not in [name for name, *_ in swarm.daemon.calls]
    assert cluster("service", "create", "--name", "b", "-q", "i").out == "id-b\n"


def test_a_crash_loop_ends_with_the_tasks_last_words(cluster, swarm):
    swarm.lives = [["starting", "failed"]] * 6
    swarm.logs = encode(1, b"opening\n") + encode(2, b"oh no\n")
    done = cluster("service", "create", "--name", "web", "i")
    assert done.status == 1
    assert "web.1 failed on w1: task: non-zero exit (3)" in done.out
    assert "service web does not converge: web.1 failed 3 times: task: non-zero exit (3)" in done.err
    assert "  oh no" in done.err
    assert "cluster story" in done.err


def test_a_rejected_task_is_told(cluster, swarm):
    swarm.lives = [["rejected"]] * 3
    done = cluster("service", "create", "--name", "web", "i")
    assert done.status == 1
    assert "No such image: i" in done.err


def test_a_timeout_says_what_it_waits_for(cluster, swarm):
    swarm.lives = [["pending"]]
    done = cluster("service", "create", "--name", "web", "--timeout", "300ms", "i")
    assert done.status == 1
    assert "has not converged after 0.3 s: web.1 is pending: no suitable node" in done.err


def test_a_manager_that_is_away_for_a_moment_does_not_end_the_wait(cluster, swarm):
    seen = []

    def away(call):
        seen.append(1)
        if len(seen) == 2:
            raise Unavailable("no leader")
        return NODES

    swarm.daemon.handlers["node_list"] = away
    assert cluster("service", "create", "--name", "web", "i").status == 0
    assert len(seen) > 2


def test_update_and_scale_send_the_version_they_read(cluster, swarm):
    cluster("service", "create", "--name", "web", "-d", "-e", "A=1", "i")
    assert cluster("service", "update", "--env-add", "B=2", "web").status == 0
    assert swarm.services["web"]["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=1", "B=2"]
    assert cluster("service", "scale", "-d", "web=5").out == "web scaled to 5\n"
    assert swarm.services["web"]["Spec"]["Mode"] == {"Replicated": {"Replicas": 5}}
    assert cluster("service", "scale", "web").status == 1


def test_service_ps_shows_the_history_under_its_slot(cluster, swarm):
    cluster("service", "create", "--name", "web", "-d", "i")
    swarm.lives = [["failed"], ["running"]]
    swarm.polls = {"id-web": 5}
    rows = [line.split()[1:6] for line in cluster("service", "ps", "web").out.splitlines()]
    assert rows[1][:3] == ["web.1", "i", "w1"]
    assert rows[2][:2] == ["\\_", "web.1"]


COMPOSE = """\
services:
  web:
    image: i
    deploy: {replicas: 2}
  side:
    image: j
"""


def test_stack_deploy_is_idempotent_prunes_and_goes(cluster, swarm, tmp_path):
    file = tmp_path / "c.yml"
    file.write_text(COMPOSE)
    first = cluster("stack", "deploy", "-c", file, "s")
    assert first.status == 0
    said = [line for line in first.out.splitlines() if line.startswith(("Creating", "Updating", "Service"))]
    assert said == ["Creating network s_default", "Creating service s_web", "Creating service s_side"]
    bridge, images = first.err.splitlines()
    assert bridge == "cluster: warning: a bridge on each node"
    assert images.startswith("cluster: warning: images i:latest, j:latest could not be accessed on a registry")
    again = cluster("stack", "deploy", "-c", file, "s")
    assert [line for line in again.out.splitlines() if "up to date" in line] == [
        "Service s_web is up to date", "Service s_side is up to date",
    ]  # fmt: skip
    file.write_text(COMPOSE.partition("  side")[0].replace("image: i", "image: i2"))
    assert "Updating service s_web" in cluster("stack", "deploy", "-d", "--prune", "-c", file, "s").out
    assert list(swarm.services) == ["s_web"]
    assert cluster("stack", "ls").out.splitlines()[1].split() == ["s", "1"]
    gone = cluster("stack", "rm", "s")
    assert (gone.status, gone.out) == (0, "Removing service s_web\nRemoving network s_default\n")
    assert swarm.services == swarm.networks == {}
    assert "Nothing found in stack: s" in cluster("stack", "rm", "s").err


def test_what_is_sent_has_no_field_that_docker_does_not_know(cluster, swarm, tmp_path):
    file = tmp_path / "c.yml"
    file.write_text(COMPOSE.replace("{replicas: 2}", "{placement: {strategy: pack}}"))
    cluster("stack", "deploy", "-d", "-c", file, "s")
    spec = swarm.services["s_web"]["Spec"]
    assert "Strategy" not in json.dumps(spec)
    assert spec["Labels"]["covey.placement.strategy"] == "pack"


@pytest.mark.parametrize(
    ("argv", "text", "words"),
    [
        (["stack", "deploy", "-c", "FILE", "s"], "services: {web: {imagee: i}}", "unknown key services.web.imagee"),
        (["stack", "deploy", "-c", "FILE", "s"], "a: [", "line 1"),
        (["stack", "deploy", "-c", "FILE", "b@d"], COMPOSE, "invalid stack name"),
        (["stack", "deploy", "-c", "/none.yml", "s"], "", "cannot read compose file /none.yml"),
        (["service", "inspect", "nope"], "", "service nope not found"),
        (["node", "update", "--availability", "gone", "m1"], "", "--availability 'gone'"),
        (["service", "ls", "--filter", "x"], "", "--filter key=value"),
        (["service", "ls", "--format", "{{.Nope}}"], "", "no field"),
    ],
)
def test_what_is_refused_is_one_line_and_nothing_is_made(cluster, swarm, tmp_path, argv, text, words):
    (tmp_path / "c.yml").write_text(text)
    swarm.services["x"] = {
        "ID": "x",
        "Version": {"Index": 1},
        "Spec": {"Name": "x", "Labels": {}, "TaskTemplate": {}, "Mode": {}},
    }
    done = cluster(*(str(tmp_path / "c.yml") if word == "FILE" else word for word in argv))
    assert done.status == 1
    assert words in done.err
    assert done.err.startswith("cluster: ")
    assert done.err.count("\n") == 1
    assert not [name for name, *_ in swarm.daemon.calls if name.endswith("create")]


def test_usage_errors_are_2_and_nobody_there_is_one_line(cluster, monkeypatch, tmp_path):
    assert cluster("node", "ls", "--bogus").status == 2
    assert cluster("nod").status == 2
    assert "did you mean 'node'" in cluster("nod").err
    monkeypatch.setenv("COVEY_HOST", f"unix://{tmp_path}/none")
    done = cluster("node", "ls")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "Is `cluster daemon` running?" in done.err
    assert (
        cluster("-H", "ftp://x", "ps").err == "cluster: invalid host 'ftp://x': use unix:///path/to.sock or tcp://name:port\n"
    )


def test_docker_words_for_the_command_become_ours(cluster, daemon):
    def refuse(call):
        raise Unavailable('This node is not a swarm manager. Use "docker swarm init" or "docker swarm join".')

    daemon.handlers["node_list"] = refuse
    assert cluster("node", "ls").err == 'cluster: This node is not a swarm manager. Use "cluster init" or "cluster join".\n'
