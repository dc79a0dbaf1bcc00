"""``cluster image`` over all nodes: what is asked of the daemon, what people see, and how it ends when a node fails."""

import json

import pytest

from covey.engine_api.answers import Stream, Text
from covey.errors import NotFound, Unavailable

NODES = [
    {"ID": "n1", "Description": {"Hostname": "w1"}},
    {"ID": "n2", "Description": {"Hostname": "w2"}},
]


def lines(*objects):
    async def pieces():
        for one in objects:
            yield json.dumps(one).encode() + b"\r\n"

    return Stream(pieces())


def brought(failed=None, **more):
    steps = [
        {"node": "w1", "status": "Receiving", "progressDetail": {"current": 5, "total": 10}},
        {"node": "w1", "status": "Received", "id": "sha256:1"},
        *({"node": node, "status": "Failed", "message": why} for node, why in (failed or {}).items()),
    ]
    return lambda call, body: lines(*steps, {"Received": ["w1"], "Failed": failed or {}, **more})


@pytest.fixture
def archive(tmp_path, daemon):
    """A file to load; the daemon takes anything and says it was two images."""
    path = tmp_path / "image.tar"
    path.write_bytes(b"bytes")

    async def load(call):
        assert await call.read() == b"bytes"
        return lines({"stream": "Loaded image: a:1\n"}, {"stream": "Loaded image: b/c:2\n"})

    daemon.handlers["image_load"] = load
    daemon.handlers["image_inspect"] = lambda call: {"Id": f"sha256:{call.params['name']}"}
    return path


def asked(daemon):
    return [body for name, _, _, body in daemon.calls if name == "covey_image_distribute"]


def test_what_is_loaded_is_brought_to_all_nodes_by_name_and_id(daemon, cluster, archive):
    daemon.handlers["covey_image_distribute"] = brought()
    done = cluster("image", "load", archive, "--all-nodes")
    assert done.status == 0, done
    assert asked(daemon) == [{"Name": "a:1", "Id": "sha256:a:1"}, {"Name": "b/c:2", "Id": "sha256:b/c:2"}]
    assert "w1: has a:1" in done.out
    assert "w1: has b/c:2" in done.out


def test_a_load_on_this_node_asks_nobody_else(daemon, cluster, archive):
    assert cluster("image", "load", "-i", archive).status == 0
    assert cluster("image", "load", archive).status == 0
    assert not asked(daemon)


def test_who_has_not_got_it_is_named_and_all_images_are_tried(daemon, cluster, archive):
    daemon.handlers["covey_image_distribute"] = brought({"w2": "no room\x1b[2J"})
    done = cluster("image", "load", archive, "--all-nodes", "--quiet")
    assert done.status == 1
    assert done.out == ""
    assert done.err.splitlines() == [
        "cluster: w2 does not have a:1: no room?[2J",
        "cluster: w2 does not have b/c:2: no room?[2J",
    ]


def test_an_archive_without_names_cannot_be_brought(daemon, cluster, archive):
    async def load(call):
        return lines({"stream": "Loaded image ID: sha256:1\n"})

    daemon.handlers["image_load"] = load
    done = cluster("image", "load", archive, "--all-nodes")
    assert done.status == 1
    assert "names no image" in done.err


def test_an_image_is_brought_to_the_nodes_named(daemon, cluster):
    daemon.handlers["covey_image_distribute"] = brought()
    assert cluster("image", "distribute", "a:1", "--node", "w1", "--node", "w2").status == 0
    assert asked(daemon) == [{"Name": "a:1", "Nodes": ["w1", "w2"]}]


def test_a_manager_that_breaks_off_is_no_success(daemon, cluster):
    daemon.handlers["covey_image_distribute"] = lambda call, body: lines({"node": "w1", "status": "Received"})
    done = cluster("image", "distribute", "a:1")
    assert done.status == 1
    assert "broke off" in done.err


def refuse(error):
    def answer(call, body=None):
        raise error

    return answer


def test_what_nobody_has_is_said_as_the_manager_says_it(daemon, cluster):
    daemon.handlers["covey_image_distribute"] = refuse(NotFound("No such image: a:1 on any node"))
    done = cluster("image", "distribute", "a:1")
    assert (done.status, done.err) == (1, "cluster: No such image: a:1 on any node\n")


def forwarded(answers):
    """``/_node``: an answer by (node, path)."""

    def answer(call):
        found = answers[call.params["name"]]
        if isinstance(found, Exception):
            raise found
        return Text(json.dumps(found), content_type="application/json")

    return answer


def test_prune_goes_to_every_node_and_adds_up(daemon, cluster):
    daemon.handlers["node_list"] = lambda call: NODES
    pruned = {"ImagesDeleted": [{"Untagged": "a:1"}], "SpaceReclaimed": 1000}
    daemon.handlers["node_forward"] = forwarded({"n1": pruned, "n2": pruned})
    done = cluster("image", "prune", "--all", "--force", "--all-nodes")
    assert done.status == 0, done
    assert done.out.splitlines() == ["w1: Untagged: a:1", "w2: Untagged: a:1", "Total reclaimed space: 2kB"]
    paths = {params["name"]: params["tail"] for name, params, _, _ in daemon.calls if name == "node_forward"}
    assert paths == {"n1": "/images/prune", "n2": "/images/prune"}
    query = next(query for name, _, query, _ in daemon.calls if name == "node_forward")
    assert json.loads(query["filters"]) == {"dangling": {"false": True}}


def test_a_node_that_does_not_answer_is_named_and_the_others_are_done(daemon, cluster):
    daemon.handlers["node_list"] = lambda call: NODES
    images = [{"Id": "sha256:" + "1" * 64, "RepoTags": ["a:1"], "Created": 0, "Size": 5}]
    daemon.handlers["node_forward"] = forwarded({"n1": Unavailable("node w1 is not connected"), "n2": images})
    done = cluster("image", "ls", "--all-nodes")
    assert [line.split()[:3] for line in done.out.splitlines()] == [["NODE", "REPOSITORY", "TAG"], ["w2", "a", "1"]]
    assert "w1: node w1 is not connected" in done.err
    daemon.handlers["node_forward"] = forwarded({"n1": Unavailable("node w1 is not connected"), "n2": {}})
    done = cluster("image", "prune", "--all-nodes")
    assert done.status == 1
    assert "w1: node w1 is not connected" in done.err
    assert "Total reclaimed space: 0B" in done.out
