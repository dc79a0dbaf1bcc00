"""Joining and sessions over loopback TLS with a scripted worker; the store is the memory one, the timers are the test's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fake_worker import FakeWorker, dial, join, with_state
from harness import Cluster, wait_until

from covey.engine_api.framing import STDERR, Decoder, encode
from covey.errors import CoveyError, Forbidden, InvalidArgument, NotFound, NotImplementedYet, Unauthorized, Unavailable
from covey.model.objects import TaskStatus
from covey.model.task_states import TaskState
from covey.tls import Identity, client_context, make_key_and_request, parse_token, pinning_context
from covey.wire.messages import Assignments, JoinReply, JoinRequest, OpenSession, SessionOpened
from manager.ca.authority import make_identity, make_root

pytestmark = [pytest.mark.asyncio, pytest.mark.suite]


async def node_state(cluster: Cluster, worker: FakeWorker) -> str:
    return str((await cluster.client.call("node_inspect", {"id": worker.node_id}))["Status"]["State"])


async def test_three_replicas_converge_on_three_workers(cluster: Cluster) -> None:
    async with cluster.workers(3) as workers:
        await cluster.create("web", 3)
        running = await cluster.wait_running("web", 3)
        assert {task["NodeID"] for task in running} == {worker.node_id for worker in workers}
        listed = await cluster.client.call("service_list", query={"status": "true"})
        assert listed[0]["ServiceStatus"]["RunningTasks"] == 3
        assert not any(worker.faults for worker in workers)


async def test_a_join_needs_a_token_that_admits_now(cluster: Cluster) -> None:
    token = await cluster.token()
    digest = parse_token(token).digest
    with pytest.raises(Unauthorized, match="join token"):
        await join(cluster.address, f"SWMTKN-1-{digest}-{'0' * 25}")
    with pytest.raises(Unauthorized, match="fingerprint"):
        await join(cluster.address, f"SWMTKN-1-{'0' * 50}-{parse_token(token).secret}")
    with pytest.raises(NotImplementedYet, match="manager"):
        await join(cluster.address, await cluster.token("Manager"))
    swarm = await cluster.client.call("swarm_inspect")
    query = {"version": str(swarm["Version"]["Index"]), "rotateWorkerToken": "true"}
    await cluster.client.call("swarm_update", query=query, json=swarm["Spec"])
    with pytest.raises(Unauthorized, match="join token"):
        await join(cluster.address, token)
    _, reply = await join(cluster.address, await cluster.token())
    assert reply.role == "worker"
    assert reply.managers == (cluster.address,)


async def test_a_node_renews_its_own_certificate_and_no_other(cluster: Cluster) -> None:
    worker, other = await cluster.join("w0"), await cluster.join("w1")
    key, request = make_key_and_request()

    async def renew(context: Any, node_id: str) -> JoinReply:
        wire, _ = await dial(cluster.address, context, "join")
        try:
            await wire.send(JoinRequest(token="", request_pem=request, node_id=node_id))
            return await wire.expect(JoinReply)
        finally:
            wire.writer.close()

    reply = await renew(client_context(worker.identity), worker.node_id)
    assert (reply.node_id, reply.role) == (worker.node_id, "worker")
    worker.identity = Identity(key, reply.certificate_pem, reply.ca_pem)
    async with worker:
        await wait_until("ready with the new certificate", lambda: cluster.are_ready([worker]))
    with pytest.raises(Forbidden, match="only node"):
        await renew(client_context(other.identity), worker.node_id)
    with pytest.raises(Forbidden, match="only node"):
        await renew(pinning_context(), worker.node_id)


async def test_a_session_needs_a_certificate_of_this_cluster(cluster: Cluster) -> None:
    with pytest.raises(Unauthorized, match="certificate"):
        await dial(cluster.address, pinning_context(), "session")
    key, root = make_root(1_700_000_000.0)
    stranger = make_identity(key, root, "stranger", "worker", "othercluster", 1_700_000_000.0)
    context = client_context(Identity(stranger.key_pem, stranger.certificate_pem, cluster.identity.ca_pem))
    with pytest.raises(OSError):
        await dial(cluster.address, context, "session")
    with pytest.raises(InvalidArgument, match="unknown purpose"):
        await dial(cluster.address, pinning_context(), "gossip")


async def test_a_worker_gets_what_is_its_own_and_nothing_else(cluster: Cluster) -> None:
    made = await cluster.client.call("secret_create", json={"Name": "key", "Data": "aHVzaA=="})
    await cluster.client.call("secret_create", json={"Name": "other", "Data": "aHVzaA=="})
    async with cluster.workers(2) as workers:
        reference = {"SecretID": made["ID"], "SecretName": "key", "File": {"Name": "key"}}
        await cluster.create("web", 1, container={"Secrets": [reference]})
        task = (await cluster.wait_running("web", 1))[0]
        holder = next(worker for worker in workers if worker.node_id == task["NodeID"])
        other = next(worker for worker in workers if worker is not holder)
        sent = [secret.name for message in holder.messages if isinstance(message, Assignments) for secret in message.secrets]
        assert sent == ["key"]
        assert not other.tasks
        assert not any(message.secrets for message in other.messages if isinstance(message, Assignments))
        await cluster.client.call("service_delete", {"id": "web"})

        async def withdrawn() -> bool:
            messages = [message for message in holder.messages if isinstance(message, Assignments)]
            removed = {item for message in messages for item in message.removed}
            return {("secret", made["ID"]), ("task", task["ID"])} <= removed

        await wait_until("the secret and the task are withdrawn", withdrawn)


async def test_assignments_are_complete_first_and_chained_after(cluster: Cluster) -> None:
    async with cluster.workers(1) as (worker,):
        await cluster.create("a", 1)
        await cluster.wait_running("a", 1)
        await cluster.create("b", 2)
        await cluster.wait_running("b", 2)
        sent = [message for message in worker.messages if isinstance(message, Assignments)]
        assert sent[0].complete
        assert not any(message.complete for message in sent[1:])
        assert [message.applies_to for message in sent[1:]] == [message.results_in for message in sent[:-1]]
        assert [message.revision for message in sent] == sorted(message.revision for message in sent)


async def refusals(worker: FakeWorker, number: int) -> bool:
    return len(worker.refused) == number


async def test_reports_on_others_tasks_and_falling_ranks_are_refused(cluster: Cluster) -> None:
    async with cluster.workers(2) as workers:
        await cluster.create("web", 1)
        task = (await cluster.wait_running("web", 1))[0]
        holder = next(worker for worker in workers if worker.node_id == task["NodeID"])
        other = next(worker for worker in workers if worker is not holder)
        await other.say([TaskStatus(id=task["ID"], node_id=other.node_id, state=TaskState.FAILED)])
        await wait_until("a refusal", lambda: refusals(other, 1))
        await other.say([TaskStatus(id=task["ID"], node_id=holder.node_id, state=TaskState.FAILED)])
        await wait_until("another refusal", lambda: refusals(other, 2))
        await holder.say([with_state(holder.statuses[task["ID"]], TaskState.PREPARING)])
        await wait_until("the holder's refusal", lambda: refusals(holder, 1))
        assert "may not follow" in holder.refused[0][1]
        assert "not assigned to node" in other.refused[0][1]
        assert len(await cluster.running("web")) == 1


async def test_a_failed_task_is_replaced_and_its_exit_code_kept(cluster: Cluster) -> None:
    async with cluster.workers(1) as (worker,):
        await cluster.create("web", 1)
        first = (await cluster.wait_running("web", 1))[0]
        held = worker.statuses[first["ID"]]
        ended = TaskStatus(
            id=held.id, node_id=held.node_id, state=TaskState.FAILED, exit_code=137, container_id="c", error="killed"
        )
        worker.statuses[first["ID"]] = ended
        await worker.say([ended])

        async def replaced() -> Any:
            running = await cluster.running("web")
            return [task for task in running if task["ID"] != first["ID"]]

        await wait_until("a successor", replaced)
        old = await cluster.client.call("task_inspect", {"id": first["ID"]})
        assert old["Status"]["State"] == "failed"
        assert old["Status"]["ContainerStatus"]["ExitCode"] == 137
        assert old["Status"]["Err"] == "killed"


async def test_a_quick_reconnect_is_no_event(cluster: Cluster) -> None:
    async with cluster.workers(1) as (worker,):
        await cluster.create("web", 1)
        task = (await cluster.wait_running("web", 1))[0]
        before = worker.sessions
        worker.hang_up()

        async def back() -> bool:
            assert await node_state(cluster, worker) == "ready"
            return worker.sessions > before

        await wait_until("another session", back)
        assert [found["ID"] for found in await cluster.running("web")] == [task["ID"]]


async def test_a_silent_worker_is_down_and_its_tasks_run_elsewhere(cluster: Cluster) -> None:
    async with cluster.workers(2) as workers:
        await cluster.create("web", 1)
        task = (await cluster.wait_running("web", 1))[0]
        holder = next(worker for worker in workers if worker.node_id == task["NodeID"])
        await holder.__aexit__()
        started = asyncio.get_running_loop().time()

        async def moved() -> Any:
            return [found for found in await cluster.running("web") if found["NodeID"] != holder.node_id]

        await wait_until("the task runs elsewhere", moved, 6.0)
        took = asyncio.get_running_loop().time() - started
        assert took < 4.0, took
        assert await node_state(cluster, holder) == "down"


async def test_a_worker_that_comes_back_is_told_to_drop_the_surplus(cluster: Cluster) -> None:
    async with cluster.workers(2) as workers:
        await cluster.create("web", 1)
        task = (await cluster.wait_running("web", 1))[0]
        holder = next(worker for worker in workers if worker.node_id == task["NodeID"])
        holder.silent = True
        holder.hang_up()

        async def down() -> bool:
            holder.hang_up()
            return await node_state(cluster, holder) == "down"

        await holder.__aexit__()
        await wait_until("down", down)
        holder.silent = False
        async with holder:

            async def dropped() -> bool:
                held = holder.tasks.get(task["ID"])
                return holder.sessions > 1 and (held is None or held.task.desired >= TaskState.SHUTDOWN)

            await wait_until("the surplus is dropped", dropped)
        assert len(await cluster.wait_running("web", 1)) == 1


async def test_a_second_session_of_a_node_ends_the_first(cluster: Cluster) -> None:
    async with cluster.workers(1) as (worker,):
        wire, _ = await dial(cluster.address, client_context(worker.identity), "session")
        await wire.send(OpenSession(description=worker_description(worker)))
        assert (await wire.expect(SessionOpened)).heartbeat > 0

        async def told() -> bool:
            return any("superseded" in fault for fault in worker.faults)

        await wait_until("the first session is told", told)
        wire.writer.close()


def worker_description(worker: FakeWorker) -> Any:
    from covey.model.objects import NodeDescription

    return NodeDescription(hostname=worker.hostname, resources=worker.resources)


async def test_registrations_are_limited(cluster: Cluster) -> None:
    worker = await cluster.join("w0")
    refused: list[CoveyError] = []
    for _ in range(5):
        wire, _ = await dial(cluster.address, client_context(worker.identity), "session")
        await wire.send(OpenSession(description=worker_description(worker)))
        try:
            await wire.expect(SessionOpened)
        except CoveyError as error:
            refused.append(error)
        wire.writer.close()
    assert len(refused) == 2
    assert all(isinstance(error, Unavailable) and "registered 3 times" in error.message for error in refused)


async def test_a_lost_lease_renews_the_records_and_the_office_and_moves_nothing(cluster: Cluster) -> None:
    async with cluster.workers(2) as workers:
        await cluster.create("web", 2)
        before = {task["ID"] for task in await cluster.wait_running("web", 2)}
        held = await cluster.client.call("covey_statistics")
        await cluster.store.revoke(type("L", (), {"id": held["claim"]["lease"], "lost": asyncio.Event()})())

        async def renewed() -> bool:
            told = await cluster.client.call("covey_statistics")
            return bool(told["dispatcher"]["records_renewed"] == 2 and told["candidate"]["leading"])

        await wait_until("records on the new lease, and an office", renewed)
        await wait_until("ready", lambda: cluster.are_ready(workers))
        assert {task["ID"] for task in await cluster.running("web")} == before
        assert all(worker.sessions == 1 for worker in workers)


async def test_a_manager_that_stops_says_goodbye_and_its_successor_goes_on() -> None:
    async with Cluster() as first:
        await first.bootstrap()
        listen = first.address
        async with first.workers(2) as workers:
            await first.create("web", 2)
            before = {task["ID"] for task in await first.wait_running("web", 2)}
            first._stop.set()
            await first._serving
            assert first.database.get("/covey/leader") is None
            assert not first.database.range("/covey/session/", 0, "", 0)[0]
            first.process._port.close()
            async with Cluster(first.database, first.directory, listen) as second:
                await wait_until("ready again", lambda: second.are_ready(workers))
                assert {task["ID"] for task in await second.wait_running("web", 2)} == before
                assert all(any("stopping" in fault for fault in worker.faults) for worker in workers)


LINES = {
    "w0": [(1, b"2024-01-01T00:00:01Z one\n"), (1, b"2024-01-01T00:00:03Z three\n")],
    "w1": [(2, b"2024-01-01T00:00:02Z two\n")],
}


def http_server(worker: FakeWorker, seen: list[str]) -> Any:
    """The node's Engine API as far as these tests need it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line = head.split("\r\n", 1)[0]
        seen.append(line)
        if "/logs" in line:
            body = b"".join(encode(stream, text) for stream, text in LINES[worker.hostname])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x\r\nConnection: close\r\n\r\n" + body)
        elif "/exec/" in line:
            writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
            assert await reader.readexactly(2) == b"{}"
            writer.write(b"you said " + await reader.read())
        elif "/exec" in line:
            body = json.dumps({"Id": "e" * 64}).encode()
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        else:
            body = json.dumps({"Name": worker.hostname}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    return serve


async def test_containers_nodes_execs_and_logs_are_reached_by_dial_back(cluster: Cluster) -> None:
    async with cluster.workers(2) as workers:
        seen: list[str] = []
        for worker in workers:
            worker.serve = http_server(worker, seen)
        await cluster.create("web", 2)
        tasks = await cluster.wait_running("web", 2)
        by_node = {worker.node_id: worker.hostname for worker in workers}
        for task in tasks:
            container = task["Status"]["ContainerStatus"]["ContainerID"]
            name = f"web.{task['Slot']}.{task['ID']}"
            for reference in (container, container[:30], name, f"web.{task['Slot']}", task["ID"]):
                shown = await cluster.client.call("container_inspect", {"id": reference})
                assert shown == {"Name": by_node[task["NodeID"]]}
            assert container in seen[-1]
        with pytest.raises(NotFound, match="No such container: nosuch"):
            await cluster.client.call("container_inspect", {"id": "nosuch"})
        made = await cluster.client.call("exec_create", {"id": tasks[0]["ID"]}, json={"Cmd": ["cat"]})
        async with cluster.client.hijack("exec_start", {"id": made["Id"]}, json={}) as (reader, writer):
            writer.write(b"hello")
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), 5) == b"you said hello"
        async with cluster.client.stream("service_logs", {"id": "web"}, {"stdout": "1", "stderr": "1"}) as response:
            frames = Decoder().feed(await response.read())
        assert [frame.payload for frame in frames] == [b"one\n", b"two\n", b"three\n"]
        assert frames[1].stream == STDERR
        query = {"stdout": "1", "details": "1", "timestamps": "1"}
        async with cluster.client.stream("task_logs", {"id": tasks[0]["ID"]}, query) as response:
            line = Decoder().feed(await response.read())[0].payload.decode()
        stamp, details, _ = line.split(" ", 2)
        assert stamp.startswith("2024-01-01T00:00:0")
        assert f"com.docker.swarm.task.id={tasks[0]['ID']}" in details.split(",")
        with pytest.raises(InvalidArgument, match="at least one stream"):
            async with cluster.client.stream("service_logs", {"id": "web"}):
                pass


async def test_a_node_that_is_not_connected_cannot_be_reached(cluster: Cluster) -> None:
    worker = await cluster.join("w0")
    reader, writer = await asyncio.open_unix_connection(str(cluster.options.socket_path))
    writer.write(f"GET /_node/{worker.node_id}/v1.41/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    assert " 503 " in answer.split("\r\n", 1)[0]
    assert "is not connected" in answer


async def test_a_whole_node_is_reached_under_its_name(cluster: Cluster) -> None:
    async with cluster.workers(1) as (worker,):
        seen: list[str] = []
        worker.serve = http_server(worker, seen)
        reader, writer = await asyncio.open_unix_connection(str(cluster.options.socket_path))
        writer.write(b"GET /_node/w0/v1.41/info?a=b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        assert seen == ["GET /v1.41/info?a=b HTTP/1.1"]
        assert '{"Name": "w0"}' in answer
