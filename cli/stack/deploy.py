"""A plan carried out: networks, secrets and configs first, then services made or updated. Run again it changes nothing.

Only calls and fields of Docker's API are used, so that it deploys to a Docker Swarm too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from cli.connection import filters
from cli.stack.convert import NAMESPACE
from cli.stack.images import Resolve
from cli.stack.plan import Plan
from covey.engine_api.light import Client
from covey.errors import Conflict, CoveyError, Forbidden, Internal, InvalidArgument, NotFound, Unavailable

Say = Callable[[str], None]
#: Networks are in use until the last task on them has ended.
REMOVAL_SECONDS = 90.0
_PAUSE = 0.3


def of_stack(stack: str) -> str:
    """The filter of everything that belongs to ``stack``."""
    return filters([], label=f"{NAMESPACE}={stack}") or ""


Login = Callable[[Mapping[str, Any]], Mapping[str, str]]


def nobody(spec: Mapping[str, Any]) -> Mapping[str, str]:
    """No login."""
    return {}


def present(api: Client, stack: str) -> list[str]:
    """Ids of the services a stack has. Raises Unavailable when this is no manager."""
    _need_manager(api)
    return [service["ID"] for service in api.get("/services", {"filters": of_stack(stack)})]


def deploy(api: Client, plan: Plan, *, prune: bool, resolve: Resolve, say: Say, warn: Say, login: Login = nobody) -> list[str]:
    """Make the cluster hold what ``plan`` says; the ids of its services. ``login``: what goes along with a spec."""
    _need_manager(api)
    warn = _once(warn)
    networks = _networks(api, plan, say, warn)
    ids = _files(api, plan, say)
    specs = plan.services(ids)
    present = {one["Spec"]["Name"]: one for one in api.get("/services", {"filters": of_stack(plan.stack)})}
    resolve(specs, present)
    if prune:
        for name in sorted(set(present) - set(specs)):
            say(f"Removing service {name}")
            api.delete(f"/services/{present[name]['ID']}")
    service_ids = []
    for name, spec in specs.items():
        if name in present:
            service_ids.append(present[name]["ID"])
            _update(api, present[name], spec, networks, say, warn, login(spec))
            continue
        say(f"Creating service {name}")
        answer = api.post("/services/create", json=spec, headers=login(spec))
        _warn(answer, warn)
        service_ids.append(answer["ID"])
    return service_ids


def _need_manager(api: Client) -> None:
    swarm = (api.get("/info") or {}).get("Swarm") or {}
    if not swarm.get("ControlAvailable"):
        raise Unavailable("this node is not a manager: make a cluster with `cluster init`, or name a manager with -H")


def _once(warn: Say) -> Say:
    """What the daemon says of every service is said once."""
    said: set[str] = set()

    def tell(text: str) -> None:
        if text not in said:
            said.add(text)
            warn(text)

    return tell


def _warn(answer: Mapping[str, Any] | None, warn: Say) -> None:
    answer = answer or {}
    for text in [*(answer.get("Warnings") or ()), *([answer["Warning"]] if answer.get("Warning") else [])]:
        warn(text)


def _networks(api: Client, plan: Plan, say: Say, warn: Say) -> dict[str, str]:
    """Make what is missing; id → name of the stack's networks."""
    # A node's own network may have the same name; the cluster's is the one that counts.
    present = {one["Name"]: one for one in sorted(api.get("/networks"), key=lambda one: str(one.get("Scope")) == "swarm")}
    for name, body in plan.networks.items():
        if body is None:
            found = present.get(name)
            if found is None:
                raise NotFound(f"network {name} is declared external and is not there: make it with `cluster network create`")
            if found.get("Scope") != "swarm" and name not in ("host", "bridge", "none"):
                raise InvalidArgument(
                    f"network {name} is declared external but is of this node alone (scope {found.get('Scope')}): "
                    "make one of the cluster with `cluster network create --driver overlay`"
                )
        elif name not in present or present[name].get("Scope") != "swarm":
            say(f"Creating network {name}")
            made = api.post("/networks/create", json=body)
            _warn(made, warn)
            present[name] = {"Id": made["Id"], "Name": name}
    return {present[name]["Id"]: name for name in plan.networks}


def _files(api: Client, plan: Plan, say: Say) -> dict[tuple[str, str], tuple[str, str]]:
    """Make or update secrets and configs; (kind, compose name) → (id, cluster name)."""
    ids: dict[tuple[str, str], tuple[str, str]] = {}
    for (kind, name), full in plan.external.items():
        found = _named(api, kind, full)
        if found is None:
            raise NotFound(f"{kind} {full} is declared external and is not there")
        ids[kind, name] = (found["ID"], full)
    for (kind, name), body in plan.files.items():
        full = body["Name"]
        found = _named(api, kind, full)
        if found is None:
            say(f"Creating {kind} {full}")
            ids[kind, name] = (api.post(f"/{kind}s/create", json=body)["ID"], full)
            continue
        # The daemon refuses other data under the same name, and says so.
        api.post(f"/{kind}s/{found['ID']}/update", {"version": found["Version"]["Index"]}, body)
        ids[kind, name] = (found["ID"], full)
    return ids


def _named(api: Client, kind: str, full: str) -> Any:
    found = api.get(f"/{kind}s", {"filters": filters([], name=full)})
    return next((one for one in found if one["Spec"]["Name"] == full), None)


def _update(
    api: Client,
    present: Mapping[str, Any],
    spec: dict[str, Any],
    networks: Mapping[str, str],
    say: Say,
    warn: Say,
    headers: Mapping[str, str],
) -> None:
    name = spec["Name"]
    # A forced replacement in between is not taken back.
    spec["TaskTemplate"]["ForceUpdate"] = (present["Spec"].get("TaskTemplate") or {}).get("ForceUpdate") or 0
    if not headers and essence(spec, networks) == essence(present["Spec"], networks):
        say(f"Service {name} is up to date")
        return
    say(f"Updating service {name}")
    query = {"version": present["Version"]["Index"]}
    _warn(api.post(f"/services/{present['ID']}/update", query, spec, headers=headers), warn)


#: What a daemon fills in for what a spec leaves out; a spec that says it means the same.
_DEFAULTS: Mapping[str, Any] = {
    "Isolation": "default",
    "Runtime": "container",
    "PublishMode": "ingress",
    "Protocol": "tcp",
    "Mode": "vip",
}


def essence(spec: Any, networks: Mapping[str, str], key: str = "") -> Any:
    """A spec without what says nothing (empty values, defaults), networks by name: to tell whether two mean the same."""
    if isinstance(spec, Mapping):
        inner = {name: essence(value, networks, name) for name, value in spec.items()}
        return {
            name: value
            for name, value in inner.items()
            if value not in (None, "", 0, False, [], {}) and _DEFAULTS.get(name) != value
        }
    if isinstance(spec, list):
        return [essence(value, networks) for value in spec]
    return networks.get(spec, spec) if key == "Target" else spec


def remove(api: Client, stack: str, say: Say) -> bool:
    """Take a stack away and wait until its tasks are gone. False when there was nothing of it."""
    query = {"filters": of_stack(stack)}
    services = api.get("/services", query)
    networks = [one for one in api.get("/networks", query) if one.get("Scope") == "swarm"]
    files = [(kind, one) for kind in ("secret", "config") for one in _listed(api, kind, query)]
    if not services and not networks and not files:
        return False
    for service in services:
        say(f"Removing service {service['Spec']['Name']}")
        _gone(partial(api.delete, f"/services/{service['ID']}"))
    deadline = time.monotonic() + REMOVAL_SECONDS
    # By the stack's label: dockerd answers 404 to a question after tasks of a service that is no more.
    _wait_tasks_gone(api, query, deadline)
    for kind, one in files:
        say(f"Removing {kind} {one['Spec']['Name']}")
        _patiently(partial(api.delete, f"/{kind}s/{one['ID']}"), deadline)
    for network in networks:
        say(f"Removing network {network['Name']}")
        _patiently(partial(api.delete, f"/networks/{network['Id']}"), deadline)
    return True


def _listed(api: Client, kind: str, query: Mapping[str, str]) -> Iterable[Any]:
    try:
        return list(api.get(f"/{kind}s", query) or ())
    except CoveyError as error:
        if error.status in (404, 501):
            return ()
        raise


def _gone(act: Callable[[], Any]) -> None:
    try:
        act()
    except NotFound:
        return


def _wait_tasks_gone(api: Client, query: Mapping[str, str], deadline: float) -> None:
    while True:
        open_tasks = [task for task in api.get("/tasks", query) if task["Status"]["State"] in _UNDER_WAY]
        if not open_tasks:
            return
        if time.monotonic() > deadline:
            states = ", ".join(f"{task['ID'][:12]} ({task['Status']['State']})" for task in open_tasks[:3])
            raise Unavailable(
                f"{len(open_tasks)} tasks have not ended after {REMOVAL_SECONDS:g} s: {states}; see `cluster node ls`"
            )
        time.sleep(_PAUSE)


_IN_USE = ("in use", "active endpoints")
_UNDER_WAY = ("assigned", "accepted", "preparing", "ready", "starting", "running")


def _patiently(act: Callable[[], Any], deadline: float) -> None:
    """Again while the object is still in use."""
    while True:
        try:
            _gone(act)
            return
        except (Forbidden, InvalidArgument, Conflict, Internal) as error:
            if not any(words in error.message for words in _IN_USE) or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)
