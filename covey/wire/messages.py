"""Every message that crosses the cluster port, as data. Pure: who sends what when is written in docs/protocol.md.

A connection (TLS 1.3) opens with ``Hello``, answered by ``Welcome`` or ``Refused``; then, by its purpose:

- join: ``JoinRequest`` → ``JoinReply``; no client certificate; the client has pinned the CA by the token's digest.
- session: ``OpenSession`` → ``SessionOpened``, then ``Assignments``, ``DialBack`` down, ``StatusBatch``, ``Heartbeat`` up.
  Of images: ``ImagesHeld``, ``ImageWanted``, ``BlobWanted``, ``BlobEnded`` up, ``ImageOffer``, ``BlobSource`` down (version 2).
  Of logins: ``LoginsWanted`` up, ``LoginsGiven`` down (version 2).
- dialback: ``DialBackOpen``; from there on the bytes are HTTP, the manager being the client.
- blob: ``BlobRelay`` → ``BlobRelayed``; from there on the bytes are the blob's (version 2).

Unknown fields are ignored and unknown message types refused by name, so that a release can talk to its neighbours.
"""

from __future__ import annotations

from typing import Any

import msgspec

from covey.model.login import RegistryLogin
from covey.model.objects import NodeDescription, PortConfig, Task, TaskStatus

#: The version of this protocol; a peer speaks it if its own is the same or one apart.
VERSION = 2
#: The first version in which nodes and managers speak of images; a peer of an older one is told nothing of them.
IMAGES = 2


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
    it is not, for an older view would take running tasks away. ``blob_port`` is where the node gives blobs to others at
    its address; 0: it does not.
    """

    description: NodeDescription
    address: str = ""
    revision: int = 0
    blob_port: int = 0


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


class HeldImage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image on a node: its manifest, its id, what it is called (full names), and the blobs it is made of."""

    manifest: str
    size: int
    id: str = ""
    architecture: str = ""
    names: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    tagged_at: float = 0.0


class ImagesHeld(Message, frozen=True, kw_only=True, omit_defaults=True, tag="held"):
    """The images a node holds: all of them (``complete``), or the new and changed ones, and manifests of those ``gone``."""

    complete: bool
    images: tuple[HeldImage, ...] = ()
    gone: tuple[str, ...] = ()


class ImageWanted(Message, frozen=True, kw_only=True, omit_defaults=True, tag="want-image"):
    """Who has this image? ``image``: a full name with tag or digest, or the digest of a manifest or config."""

    request: int
    image: str
    architecture: str = ""


class ImageOffer(Message, frozen=True, kw_only=True, omit_defaults=True, tag="offer"):
    """The image's manifest, whose blobs the node then asks for one by one; or, in ``error``, that no node has it.

    Then the node looks elsewhere, and says ImageSought when that is over; others that want the image wait for it meanwhile.
    """

    request: int
    manifest: str = ""
    size: int = 0
    error: str = ""


class ImageSought(Message, frozen=True, kw_only=True, omit_defaults=True, tag="sought"):
    """The node has looked for the image elsewhere, as no node had it: it is here now, or why not. Fields as in ImageWanted."""

    image: str
    architecture: str = ""
    error: str = ""


class BlobWanted(Message, frozen=True, kw_only=True, omit_defaults=True, tag="want-blob"):
    """The node needs this blob; it is told of a source as soon as one is free. ``only_held``: it has elsewhere to go, so it
    neither waits for what no node has nor has a manager carry anything."""

    digest: str
    size: int
    only_held: bool = False


class BlobSource(Message, frozen=True, kw_only=True, omit_defaults=True, tag="source"):
    """Fetch the blob from ``node_id``, at ``address`` or (``address`` "") through the manager. ``error``: nobody has it."""

    digest: str
    node_id: str = ""
    address: str = ""
    error: str = ""


class BlobEnded(Message, frozen=True, kw_only=True, omit_defaults=True, tag="ended"):
    """A transfer is over. ``fault``: "" (the blob is there, verified), unreachable, gone, broken, corrupt: the node waits for
    another source; stopped: it no longer wants the blob. ``came``: bytes of it that this transfer brought."""

    digest: str
    node_id: str = ""
    fault: str = ""
    words: str = ""
    came: int = 0


class BlobRelay(Message, frozen=True, kw_only=True, omit_defaults=True, tag="relay"):
    """First on a connection with the purpose blob: give me this blob of that node, from ``offset`` on."""

    digest: str
    node_id: str
    offset: int = 0


class BlobRelayed(Message, frozen=True, kw_only=True, omit_defaults=True, tag="relayed"):
    """``size`` bytes of the blob follow, as they are."""

    size: int


class LoginsWanted(Message, frozen=True, kw_only=True, omit_defaults=True, tag="want-logins"):
    """Who to be at the registry of this image (a full name), which a task assigned to the node needs?"""

    request: int
    image: str


class LoginsGiven(Message, frozen=True, kw_only=True, omit_defaults=True, tag="logins"):
    """The logins, in the order in which they are to be tried, for this pull; or, in ``error``, why the node may not know."""

    request: int
    logins: tuple[RegistryLogin, ...] = ()
    error: str = ""


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
    | ImagesHeld
    | ImageWanted
    | ImageOffer
    | ImageSought
    | BlobWanted
    | BlobSource
    | BlobEnded
    | BlobRelay
    | BlobRelayed
    | LoginsWanted
    | LoginsGiven
    | Disconnect
)

#: What a node says of images, and what it is told of them.
ImageReport = ImagesHeld | ImageWanted | ImageSought | BlobWanted | BlobEnded
ImageNews = ImageOffer | BlobSource
