"""Which keys there are, and who alone writes each: rule 3 of the house as a table.

It builds and takes apart keys; it knows no store and no value. A key is ``<root>/<kind>`` for a kind of which there is
one, ``<root>/<kind>/<id>`` else; a name's id is ``<kind>/<quoted name>``.
"""

from __future__ import annotations

import enum
from typing import NamedTuple
from urllib.parse import quote, unquote

from covey.errors import InvalidArgument, NotFound

DEFAULT_ROOT = "/covey"


class Writer(enum.StrEnum):
    """The parts of a manager that write."""

    API = "api"
    DISPATCHER = "dispatcher"
    LEADER = "leader"
    ELECTION = "election"


class Rule(NamedTuple):
    """``writer`` alone puts keys of the kind; ``reaper`` may remove those whose owner is gone. ``single``: no id.

    ``rollback``: who may put them too, in the one transaction that takes a service's previous spec back
    (docs/adr/0009-rollback.md).
    """

    writer: Writer
    single: bool = False
    leased: bool = False
    reaper: Writer | None = None
    rollback: Writer | None = None


TABLE: dict[str, Rule] = {
    "cluster": Rule(Writer.API, single=True),
    "service": Rule(Writer.API, rollback=Writer.LEADER),
    "past_spec": Rule(Writer.API, rollback=Writer.LEADER),
    "node": Rule(Writer.API),
    "secret": Rule(Writer.API),
    "config": Rule(Writer.API),
    "login": Rule(Writer.API),
    "service_login": Rule(Writer.API),
    "network": Rule(Writer.API),
    "name": Rule(Writer.API, rollback=Writer.LEADER, reaper=Writer.LEADER),
    "node_info": Rule(Writer.DISPATCHER, reaper=Writer.LEADER),
    "task_status": Rule(Writer.DISPATCHER, reaper=Writer.LEADER),
    "session": Rule(Writer.DISPATCHER, leased=True),
    "node_status": Rule(Writer.LEADER),
    "service_status": Rule(Writer.LEADER),
    "task": Rule(Writer.LEADER),
    "network_allocation": Rule(Writer.LEADER),
    "service_allocation": Rule(Writer.LEADER),
    "leader": Rule(Writer.ELECTION, single=True, leased=True),
}
"""Kind → rule, for the kinds of covey.model.objects. The dispatcher holds the node's session, which its transactions
compare. The leader, which removes a task or sees a node gone, also removes what the dispatcher wrote of it: nobody else
is left to do it. A name it may remove is that of a port which a rollback gives up."""


class Key(NamedTuple):
    """A key taken apart; ``id`` is empty for a single one."""

    kind: str
    id: str


class Keys:
    """Keys under one root, so that several clusters can share an etcd."""

    def __init__(self, root: str = DEFAULT_ROOT) -> None:
        if not root.startswith("/") or root.endswith("/"):
            raise InvalidArgument(f"store root {root!r} must start with / and not end with it, like {DEFAULT_ROOT}")
        self.root = root

    def everything(self) -> str:
        """The prefix of all keys of this cluster."""
        return self.root + "/"

    def prefix(self, kind: str) -> str:
        """What every key of ``kind`` starts with; for a single kind, the key itself."""
        return f"{self.root}/{kind}" if rule_of(kind).single else f"{self.root}/{kind}/"

    def key(self, kind: str, id: str = "") -> str:
        """The key of one object. Raises InvalidArgument for an id that cannot be part of a key."""
        if rule_of(kind).single:
            if id:
                raise InvalidArgument(f"there is one {kind} only: key asked for {id!r}")
            return f"{self.root}/{kind}"
        if not id or "\0" in id or (kind != "name" and "/" in id):
            raise InvalidArgument(f"{kind} id {id!r} cannot be a key: it must not be empty nor hold a slash")
        return f"{self.root}/{kind}/{id}"

    def name(self, kind: str, name: str) -> str:
        """The key that reserves ``name`` among objects of ``kind``; its value is the object's id."""
        if not name:
            raise InvalidArgument(f"{kind} name is empty: give it a name")
        return f"{self.root}/name/{kind}/{quote(name, safe='')}"

    def parse(self, key: str) -> Key:
        """The opposite of ``key``. Raises NotFound for a key that is none of ours."""
        head = self.root + "/"
        if key.startswith(head):
            kind, slash, id = key[len(head) :].partition("/")
            rule = TABLE.get(kind)
            if rule is not None and rule.single != bool(slash) and (rule.single or id):
                return Key(kind, id)
        raise NotFound(f"key {key} is none of the kinds under {self.root}: see manager/store/keys.py")

    def knows(self, key: str) -> bool:
        """Whether ``parse`` takes it."""
        return self.find(key) is not None

    def find(self, key: str) -> Key | None:
        """As ``object_id``, None for a key that is none of ours."""
        try:
            return self.object_id(key)
        except NotFound:
            return None

    def object_id(self, key: str) -> Key:
        """(kind, id) as scheduler.index wants them: a single object has its kind as id. Raises NotFound."""
        parsed = self.parse(key)
        return parsed if parsed.id else Key(parsed.kind, parsed.kind)

    def parse_name(self, key: str) -> tuple[str, str]:
        """(kind, name) of a key made by ``name``."""
        kind, _, quoted = self.parse(key).id.partition("/")
        return kind, unquote(quoted)

    def writer_of(self, key: str) -> Writer:
        """Who alone may put ``key``."""
        return TABLE[self.parse(key).kind].writer

    def may_put(self, writer: Writer, key: str) -> bool:
        rule = TABLE[self.parse(key).kind]
        return writer is rule.writer or writer is rule.rollback

    def may_delete(self, writer: Writer, key_or_prefix: str) -> bool:
        """Whether ``writer`` may remove the key, or every key under the prefix (which must be within one kind)."""
        rule = self.rule_of_prefix(key_or_prefix)
        return writer is rule.writer or writer is rule.reaper

    def rule_of_prefix(self, key_or_prefix: str) -> Rule:
        """The row of the one kind that the key, or every key under the prefix, is of. Raises NotFound."""
        head = self.root + "/"
        kind, slash, _ = key_or_prefix[len(head) :].partition("/")
        if not key_or_prefix.startswith(head) or kind not in TABLE or (not slash and not TABLE[kind].single):
            raise NotFound(f"prefix {key_or_prefix} is not within one kind of {self.root}: see manager/store/keys.py")
        return TABLE[kind]


def rule_of(kind: str) -> Rule:
    """The table's row. Raises InvalidArgument for an unknown kind."""
    rule = TABLE.get(kind)
    if rule is None:
        raise InvalidArgument(f"unknown kind of key {kind!r}: one of {', '.join(TABLE)}")
    return rule
