"""Which logins to registries a node is told of, and what becomes of a service's login when the service is made or changed.

Pure. Logins are of the cluster (one a host) or came with a service; whoever may not know one is told so without naming any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from covey.credentials import HUB_DOMAIN, Credentials, domain_of, host_of
from covey.errors import Forbidden, InvalidArgument
from covey.model.login import RegistryLogin, newest_first
from covey.model.objects import ClusterLogin, ServiceLogin, Task
from covey.model.task_states import TaskState, is_terminal
from scheduler.snapshot import Snapshot

SPEC, PREVIOUS_SPEC = "spec", "previous-spec"


def image_of(template: Mapping[str, Any]) -> str:
    """The image that a TaskTemplate names, "" for none."""
    return str((template.get("ContainerSpec") or {}).get("Image") or "")


def login(found: Credentials, host: str, now: float) -> RegistryLogin:
    """``found`` as the login to ``host``, given ``now``."""
    return RegistryLogin(
        host=host,
        username=found.username,
        password=found.password,
        identity_token=found.identity_token,
        registry_token=found.registry_token,
        given_at=now,
    )


def for_node(
    snapshot: Snapshot,
    cluster: Mapping[str, ClusterLogin],
    services: Mapping[str, ServiceLogin],
    node_id: str,
    image: str,
) -> tuple[RegistryLogin, ...]:
    """The logins to the registry of ``image``, a full name, in the order to try them.

    Raises Forbidden unless a task that ``node_id`` has yet to run, or runs, needs an image of that repository. Of services'
    logins it gets those of the services whose tasks these are.
    """
    needing = [task for task in snapshot.tasks_on(node_id) if _needs(snapshot, task, image)]
    if not needing:
        raise Forbidden(f"node {node_id} has no task that needs the image {image}: it is told no login to its registry")
    host = host_of(domain_of(image))
    held = [services[one] for one in dict.fromkeys(task.service_id for task in needing) if one in services]
    known = [login for one in held for login in (one.current, one.previous)]
    known += [cluster[host].login] if host in cluster else []
    return newest_first(one for one in known if one is not None and one.host == host)


def _needs(snapshot: Snapshot, task: Task, image: str) -> bool:
    if task.state < TaskState.ASSIGNED or task.desired > TaskState.RUNNING or is_terminal(snapshot.state(task)):
        return False
    return repository(image) == repository(image_of(task.spec))


def repository(image: str) -> tuple[str, str]:
    """Host and path of an image's repository, for which registries give and refuse: tag and digest are no matter."""
    head, slash, last = image.partition("@")[0].rpartition("/")
    bare = head + slash + last.partition(":")[0]
    domain = domain_of(bare)
    host, path = host_of(domain), bare.removeprefix(f"{domain}/")
    return host, f"library/{path}" if host == HUB_DOMAIN and "/" not in path else path


def after_update(
    held: ServiceLogin | None, service_id: str, given: RegistryLogin | None, said: bool, auth_from: str
) -> ServiceLogin | None:
    """A service's logins after an update; None: it has none. ``said``: the update came with a login, or with nobody's.

    Without one, ``auth_from`` says whose goes on: the service's own ("" or spec), or that of before (previous-spec). Raises
    InvalidArgument for another word.
    """
    if auth_from not in ("", SPEC, PREVIOUS_SPEC):
        raise InvalidArgument(f"unsupported registryAuthFrom value {auth_from!r}: use {SPEC} or {PREVIOUS_SPEC}")
    now = held or ServiceLogin(id=service_id)
    if said:
        same = given is not None and now.current is not None and given.account == now.current.account
        before = now.previous if same else now.current or now.previous
        now = msgspec.structs.replace(now, current=given, previous=before, version=0)
    elif auth_from == PREVIOUS_SPEC:
        now = msgspec.structs.replace(now, current=now.previous, previous=now.current, version=0)
    return now if now.current is not None or now.previous is not None else None
