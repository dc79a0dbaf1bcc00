"""``--plan`` and ``cluster explain``: what is asked of the daemon, what people and scripts get, and that nothing is changed."""

import json

import pytest

from covey.errors import InvalidArgument, NotFound
from tests.cli.test_cluster import Swarm

READS = {
    "config_list",
    "covey_plan",
    "distribution_inspect",
    "network_inspect",
    "network_list",
    "secret_list",
    "service_inspect",
    "service_list",
    "system_info",
    "system_ping",
}

NODES = [
    {"ID": "n1", "Hostname": "w1", "Fits": True, "Score": -0.25, "Replicas": 1, "Rank": 1},
    {
        "ID": "n2",
        "Hostname": "w2",
        "Fits": False,
        "Score": -0.5,
        "Replicas": 0,
        "Filter": "resources",
        "Reason": "insufficient resources on 1 node: 2 CPUs and 0 MiB asked for, 1.5 CPUs and 512 MiB free",
        "Remedy": "free 0.5 CPUs there, or reserve less",
    },
]
UPDATE = {
    "ID": "id-web",
    "Name": "web",
    "Action": "update",
    "Diff": [
        {"Path": "Labels[a]", "Kind": "removed", "Old": "1"},
        {"Path": "Mode.Replicated.Replicas", "Kind": "changed", "Old": 2, "New": 3},
        {"Path": "TaskTemplate.ContainerSpec.Env[C]", "Kind": "added", "New": "C=\x1b[2J"},
    ],
    "Tasks": {"Create": 1, "Replace": 1, "InPlace": 1, "Destroy": 0, "Waiting": 1},
    "Order": "stop-first",
    "Parallelism": 1,
    "Batches": 1,
    "Steps": [
        {"Action": "replace", "Name": "web.1", "TaskID": "t1", "From": "w1", "To": "w2", "Batch": 1, "After": 10.0},
        {"Action": "keep", "Name": "web.2", "TaskID": "t2", "From": "w2", "To": "w2"},
        {"Action": "create", "Name": "web.3", "Message": "no suitable node (insufficient resources on 1 node)"},
    ],
    "Explained": {"Nodes": NODES, "Advice": ["reserve at most 1.5 CPUs (2 asked for): it then fits on w2"]},
}


@pytest.fixture
def swarm(daemon):
    swarm = Swarm(daemon)
    swarm.answer = {"Revision": 42, "Changes": True, "Complete": True, "Services": [UPDATE], "Displaced": []}
    swarm.asked = []

    def plan(call, body):
        swarm.asked.append(body)
        return swarm.answer

    daemon.handlers["covey_plan"] = plan
    yield swarm
    assert {name for name, *_ in daemon.calls} <= READS, "a plan only reads"


def service(swarm, name="web"):
    spec = {
        "Name": name,
        "Labels": {},
        "TaskTemplate": {"ContainerSpec": {"Image": "i"}},
        "Mode": {"Replicated": {"Replicas": 2}},
    }
    swarm.services[name] = {"ID": f"id-{name}", "Version": {"Index": 7}, "Spec": spec}
    return spec


def test_a_plan_reads_as_what_is_added_changed_and_taken_away(cluster, swarm):
    service(swarm)
    done = cluster("service", "update", "--plan", "--replicas", "3", "web")
    assert done.status == 1, done.err
    assert done.out.splitlines() == [
        "~ service web: update (stop-first, 1 at a time, 1 batch)",
        '    - Labels[a]: "1"',
        "    ~ Mode.Replicated.Replicas: 2 → 3",
        '    + TaskTemplate.ContainerSpec.Env[C]: "C=\\u001b[2J"',
        "    tasks: 1 to create, 1 to replace, 1 left in place, 1 without a node",
        "    ~ web.1   w1 → w2     batch 1 after 10 s",
        "    + web.3   → (waits)                        no suitable node (insufficient resources on 1 node)",
        "    nodes:",
        "      NODE   RANK   SCORE    REPLICAS   VERDICT"
        "                                                                                   REMEDY",
        "      w1     1      -0.250   1          fits",
        "      w2     -               0          insufficient resources on 1 node: "
        "2 CPUs and 0 MiB asked for, 1.5 CPUs and 512 MiB free   free 0.5 CPUs there, or reserve less",
        "    it would find a node if you",
        "      - reserve at most 1.5 CPUs (2 asked for): it then fits on w2",
        "Planned at revision 42; nothing has been changed.",
    ]
    (asked,) = swarm.asked
    assert asked["Services"] == [{"ID": "id-web", "Spec": {**service(swarm), "Mode": {"Replicated": {"Replicas": 3}}}}]


def test_where_all_find_a_node_it_says_why_not_on_the_others(cluster, swarm):
    service(swarm)
    swarm.answer["Services"] = [
        {**UPDATE, "Tasks": {**UPDATE["Tasks"], "Waiting": 0}, "Explained": {"Nodes": [*NODES, *[NODES[1]] * 7]}}
    ]
    out = cluster("service", "update", "--plan", "web").out.splitlines()
    assert out[-7].startswith("    not on w2: insufficient resources on 1 node: 2 CPUs")
    assert out[-2] == "    … nor on 3 more nodes"


def test_the_exit_status_says_whether_there_is_anything_to_do(cluster, swarm):
    service(swarm)
    nothing = {**UPDATE, "Action": "none", "Diff": [], "Steps": [], "Batches": 0, "Explained": None}
    nothing["Tasks"] = dict.fromkeys(UPDATE["Tasks"], 0)
    swarm.answer = {**swarm.answer, "Changes": False, "Services": [nothing]}
    done = cluster("service", "update", "--plan", "web")
    assert (done.status, done.out) == (0, "= service web: up to date\nNothing to do.\n")


def test_programs_get_the_whole_answer(cluster, swarm):
    service(swarm)
    done = cluster("service", "update", "--plan", "--format", "json", "web")
    assert done.status == 1
    assert json.loads(done.out) == {**swarm.answer, "Networks": [], "Secrets": [], "Configs": []}


def test_a_create_is_planned_as_it_would_be_sent(cluster, swarm):
    done = cluster("service", "create", "--plan", "--name", "new", "--replicas", "3", "i", "sleep", "9")
    assert done.status == 1
    (asked,) = swarm.asked
    (proposed,) = asked["Services"]
    assert proposed["Create"] is True
    assert proposed["Spec"]["Name"] == "new"
    assert proposed["Spec"]["Mode"] == {"Replicated": {"Replicas": 3}}
    assert proposed["Spec"]["TaskTemplate"]["ContainerSpec"] == {"Image": "i", "Args": ["sleep", "9"]}
    assert not swarm.services


def test_a_rollback_is_planned_with_the_previous_spec(cluster, swarm):
    spec = service(swarm)
    assert cluster("service", "update", "--plan", "--rollback", "web").status == 255
    swarm.services["web"]["PreviousSpec"] = {**spec, "Labels": {"old": "1"}}
    assert cluster("service", "update", "--plan", "--rollback", "web").status == 1
    assert swarm.asked[-1]["Services"] == [{"ID": "id-web", "Spec": {**spec, "Labels": {"old": "1"}}}]


def test_a_scale_is_planned_for_all_services_at_once(cluster, swarm):
    spec, other = service(swarm), service(swarm, "db")
    assert cluster("service", "scale", "--plan", "web=5", "db=0").status == 1
    (asked,) = swarm.asked
    sized = [{**one, "Mode": {"Replicated": {"Replicas": count}}} for one, count in ((spec, 5), (other, 0))]
    assert asked["Services"] == [{"ID": "id-web", "Spec": sized[0]}, {"ID": "id-db", "Spec": sized[1]}]
    swarm.answer = {**swarm.answer, "Changes": False}
    assert cluster("service", "scale", "--plan", "--format", "json", "web=2").status == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["service", "scale", "--plan", "web"], "'web' is not of the form SERVICE=REPLICAS"),
        (["service", "scale", "--plan", "nope=1"], "service nope not found"),
        (["service", "update", "--plan", "nope"], "service nope not found"),
        (["service", "update", "--plan", "--replicas", "x", "web"], "--replicas: 'x' is not a whole number"),
        (["service", "update", "--plan", "--format", "{{.ID}}", "web"], "as json"),
        (["stack", "deploy", "--plan", "-c", "/none.yml", "s"], "cannot read compose file /none.yml"),
        (["-H", "unix:///none", "service", "create", "--plan", "i"], "Is `cluster daemon` running?"),
    ],
)
def test_where_no_plan_can_be_made_the_status_is_255(cluster, swarm, argv, words):
    service(swarm)
    done = cluster(*argv)
    assert done.status == 255
    assert words in done.err
    assert done.err.startswith("cluster: ")
    assert (done.out, done.err.count("\n")) == ("", 1)


def test_what_the_daemon_refuses_is_255_too_and_a_daemon_without_plans_is_named(cluster, swarm, daemon):
    service(swarm)

    def refuse(call, body):
        raise InvalidArgument("service web: port '80' is already in use")

    daemon.handlers["covey_plan"] = refuse
    done = cluster("service", "update", "--plan", "web")
    assert (done.status, done.err) == (255, "cluster: service web: port '80' is already in use\n")

    def unknown(call, body):
        raise NotFound("page not found")

    daemon.handlers["covey_plan"] = unknown
    done = cluster("service", "update", "--plan", "web")
    assert done.status == 255
    assert "makes no plans" in done.err


@pytest.mark.parametrize(
    "argv",
    [
        ["service", "create", "i"],
        ["service", "update", "web"],
        ["service", "scale", "web=3"],
        ["stack", "deploy", "-c", "f", "s"],
    ],
)
def test_a_format_without_a_plan_changes_nothing_by_mistake(cluster, swarm, argv):
    done = cluster(*argv[:2], "--format", "json", *argv[2:])
    assert (done.status, done.err) == (1, "cluster: --format is how a plan is shown: give --plan with it\n")


STACK = """
services:
  web:
    image: i
    secrets: [key]
    networks: [back]
networks: {back: {}}
secrets: {key: {file: ./key.txt}}
"""


def test_a_stack_is_planned_with_what_would_be_made_before_and_no_secret_leaves(cluster, swarm, tmp_path):
    (tmp_path / "key.txt").write_text("hunter2")
    (tmp_path / "c.yml").write_text(STACK)
    service(swarm, "s_old")["Labels"] = {"com.docker.stack.namespace": "s"}
    swarm.answer["Services"] = []
    done = cluster("stack", "deploy", "--plan", "--prune", "-c", tmp_path / "c.yml", "s")
    assert done.status == 1
    assert done.out.splitlines()[:2] == ["+ network s_back: create", "+ secret s_key: create"]
    (asked,) = swarm.asked
    assert asked["Remove"] == ["id-s_old"]
    assert asked["Assume"]["Secrets"] == ["planned-s_key"]
    assert [network["Name"] for network in asked["Assume"]["Networks"]] == ["s_back"]
    (proposed,) = asked["Services"]
    assert proposed["Create"] is True
    assert proposed["Spec"]["TaskTemplate"]["ContainerSpec"]["Secrets"][0]["SecretID"] == "planned-s_key"
    assert "hunter2" not in json.dumps(asked) + done.out
    assert "aHVudGVyMg" not in json.dumps(asked) + done.out
    assert set(swarm.services) == {"s_old"}
    assert not swarm.networks


def test_a_stack_that_is_up_to_date_needs_no_plan(cluster, swarm, tmp_path, daemon):
    (tmp_path / "c.yml").write_text("services: {web: {image: i, networks: [host]}}\nnetworks: {host: {external: true}}")
    swarm.networks["host"] = {"Id": "h", "Name": "host", "Scope": "local"}
    cluster("stack", "deploy", "-d", "-c", tmp_path / "c.yml", "s")
    assert set(swarm.services) == {"s_web"}
    daemon.calls.clear()
    done = cluster("stack", "deploy", "--plan", "-c", tmp_path / "c.yml", "s")
    assert (done.status, done.out) == (0, "Nothing to do.\n")
    assert not swarm.asked


def explained(**more):
    return {
        "Revision": 9, "ID": "t1", "Name": "web.1", "State": "pending", "DesiredState": "running", "Waits": True,
        "TaskMessage": "no suitable node", "Strategy": "binpack", "NodeID": "", "Node": "",
        "Message": "no suitable node (insufficient resources on 1 node)",
        "Advice": ["reserve less"], "Nodes": NODES, **more,
    }  # fmt: skip


def test_a_waiting_task_is_explained_and_the_status_says_so(cluster, daemon):
    daemon.handlers["covey_task_explain"] = lambda call: explained()
    done = cluster("explain", "t1")
    assert done.status == 1
    lines = done.out.splitlines()
    assert lines[:2] == ["web.1  t1  pending", "It waits: no suitable node (insufficient resources on 1 node)"]
    assert lines[2].split() == ["NODE", "RANK", "SCORE", "REPLICAS", "VERDICT", "REMEDY"]
    assert lines[-2:] == ["it would find a node if you", "  - reserve less"]
    whole = cluster("explain", "--format", "json", "t1")
    assert (whole.status, json.loads(whole.out)["Advice"]) == (1, ["reserve less"])


def test_a_placed_task_is_explained_by_its_name(cluster, daemon):
    placed = {"State": "running", "Waits": False, "NodeID": "n1", "Node": "w1", "Message": "", "TaskMessage": "", "Advice": []}
    daemon.handlers["task_list"] = lambda call: [{"ID": "t1", "Slot": 1, "CreatedAt": "2026"}]
    daemon.handlers["covey_task_explain"] = lambda call: explained(**placed)
    done = cluster("explain", "web.1")
    assert done.status == 0
    assert done.out.splitlines()[1] == "It is on w1 (binpack); the nodes as they would be ranked now:"
    assert daemon.calls[-1][1] == {"id": "t1"}
    gated = {**placed, "Waits": True, "State": "pending", "TaskMessage": "waiting for service db"}
    daemon.handlers["covey_task_explain"] = lambda call: explained(**gated)
    done = cluster("explain", "t1")
    assert (done.status, done.out.splitlines()[1]) == (1, "It waits: waiting for service db; it would go to w1 (binpack)")


def test_a_task_that_is_not_there_is_255(cluster, daemon):
    def missing(call):
        raise NotFound("task nope not found")

    daemon.handlers["covey_task_explain"] = missing
    done = cluster("explain", "nope")
    assert (done.status, done.err) == (255, "cluster: task nope not found\n")
