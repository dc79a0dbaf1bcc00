"""Every message that crosses the cluster port, as data. Pure: who sends what when is written in docs/protocol.md.

A connection (TLS 1.3) opens with ``Hello``, answered by ``Welcome`` or ``Refused``; then, by its purpose:

- join: ``JoinRequest`` → ``JoinReply``; no client certificate; the client has pinned the CA by the token's digest.
- session: ``OpenSession`` → ``SessionOpened``, then ``Assignments``, ``DialBack`` down, ``StatusBatch``, ``Heartbeat`` up.
- dialback: ``DialBackOpen``; from there on the bytes are HTTP, the manager being the client.

Unknown fields are ignored and unknown message types refused by name, so that a release can talk to its neighbours.
"""

from __future__ import annotations

from typing import Any

import msgspec

from covey.model.objects import NodeDescription, PortConfig, Task, TaskStatus

#: The version of this protocol; a peer speaks it if its own is the same or one apart.
VERSION = 1


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="m"):
    """One frame. Subclasses carry their tag under "m"."""


class Hello(Message, frozen=True, kw_only=True, omit_defaults=True, tag="hello"):
    """First on every connection: what it is for (join, session, dialback) and what the client speaks."""

    version: int
    purpose: str
    software: str = ""


class Welcome(Message, frozen=True, kw_only=True, omit_defaults=True, tag="welcome"):
    """The manager answers a Hello it can serve. ``ca_pem`` is sent to those who join: they pin it by the token's digest."""

    version: int
    cluster_id: str = ""
    manager_id: str = ""
    ca_pem: str = ""


class Refused(Message, frozen=True, kw_only=True, omit_defaults=True, tag="refused"):
    """Why the manager will not go on; the connection ends. ``status``: HTTP code; ``retry_after``: seconds, 0 for never."""

    status: int
    message: str
    retry_after: float = 0.0


class JoinRequest(Message, frozen=True, kw_only=True, omit_defaults=True, tag="join"):
    """Asks for a certificate: a join token and a PKCS #10 request in PEM. ``node_id`` is set when the node renews."""

    token: str
    request_pem: str
    hostname: str = ""
    availability: str = "active"
    node_id: str = ""


class JoinReply(Message, frozen=True, kw_only=True, omit_defaults=True, tag="joined"):
    """The node's identity: its id and role, its certificate, the root CA's, and managers' addresses host:port."""

    node_id: str
    role: str
    certificate_pem: str
    ca_pem: str
    cluster_id: str = ""
    managers: tuple[str, ...] = ()


class OpenSession(Message, frozen=True, kw_only=True, omit_defaults=True, tag="open"):
    """A worker with a certificate offers itself.

    ``revision`` is the store revision of the newest assignment it has applied: a manager whose view is older waits until
    it is not, for an older view would take running tasks away.
    """

    description: NodeDescription
    address: str = ""
    revision: int = 0


class SessionOpened(Message, frozen=True, kw_only=True, omit_defaults=True, tag="opened"):
    """The session's id, the heartbeat period in seconds, and where other managers are."""

    session_id: str
    heartbeat: float
    managers: tuple[str, ...] = ()


class Heartbeat(Message, frozen=True, kw_only=True, omit_defaults=True, tag="beat"):
    """I am alive; answered by the same, which carries the period to keep."""

    period: float = 0.0


class DescriptionUpdate(Message, frozen=True, kw_only=True, omit_defaults=True, tag="describe"):
    """The node's description has changed."""

    description: NodeDescription


class AssignedNetwork(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A cluster-scope network as a node needs it."""

    id: str
    name: str
    spec: dict[str, Any] = {}
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    vxlan_id: int = 0


class AssignedSecret(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A secret or config that a task of the node uses."""

    id: str
    name: str
    data: bytes = b""


class AssignedTask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task as the leader wants it on this node. ``ports`` have every published port chosen (host mode may be 0)."""

    task: Task
    ports: tuple[PortConfig, ...] = ()
    hostname: str = ""


class Assignments(Message, frozen=True, kw_only=True, omit_defaults=True, tag="assign"):
    """What the node should hold: all of it (``complete``), or what changed since ``applies_to``.

    A node that has not applied ``applies_to`` drops the increment and reopens its session. ``revision`` is the store's at
    which this was seen; a node takes none older than what it has applied. Removed objects are named by kind ("task",
    "network", "secret", "config") and id.
    """

    complete: bool
    applies_to: str = ""
    results_in: str
    revision: int = 0
    tasks: tuple[AssignedTask, ...] = ()
    networks: tuple[AssignedNetwork, ...] = ()
    secrets: tuple[AssignedSecret, ...] = ()
    configs: tuple[AssignedSecret, ...] = ()
    removed: tuple[tuple[str, str], ...] = ()
    cause: str = ""


class StatusBatch(Message, frozen=True, kw_only=True, omit_defaults=True, tag="status"):
    """Statuses in the order in which they were observed. ``sequence`` counts batches within the session, from 1."""

    sequence: int
    statuses: tuple[TaskStatus, ...]
    cause: str = ""


class StatusStored(Message, frozen=True, kw_only=True, omit_defaults=True, tag="stored"):
    """Batches up to ``sequence`` are in the store. ``refused`` are (task id, why): not the node's, or a rank that fell."""

    sequence: int
    refused: tuple[tuple[str, str], ...] = ()


class DialBack(Message, frozen=True, kw_only=True, omit_defaults=True, tag="dial"):
    """The manager needs a connection to this worker's Engine API: dial the cluster port and name ``connection_id``."""

    connection_id: str
    cause: str = ""


class DialBackOpen(Message, frozen=True, kw_only=True, omit_defaults=True, tag="dialed"):
    """The worker's answer to DialBack, first on the new connection."""

    connection_id: str


class Disconnect(Message, frozen=True, kw_only=True, omit_defaults=True, tag="bye"):
    """The sender ends the session, and why. ``code``: moved, superseded, removed, stopping."""

    code: str
    message: str = ""


AnyMessage = (
    Hello
    | Welcome
    | Refused
    | JoinRequest
    | JoinReply
    | OpenSession
    | SessionOpened
    | Heartbeat
    | DescriptionUpdate
    | Assignments
    | StatusBatch
    | StatusStored
    | DialBack
    | DialBackOpen
    | Disconnect
)
