"""A project → what a stack is made of: networks, secrets, configs and services as the API takes them. Pure but for files.

Everything that can be wrong in the files is found here, before anything is made in the cluster.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cli.stack.convert import NAMESPACE, labels, scoped, service_spec
from cli.stack.files import Project, file_data, service_environment
from cli.stack.keys import mapping, sequence
from cli.stack.units import truth
from covey.errors import InvalidArgument

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_SERVICE = re.compile(r"[a-zA-Z0-9._-]{1,62}")
KINDS = ("secret", "config")


def check_stack_name(name: str) -> str:
    """``name`` if a stack may be called so. Raises InvalidArgument."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"invalid stack name {name!r}: letters, digits, and _ . - after the first, 63 at most")
    return name


@dataclass(slots=True)
class Plan:
    """``networks``: body of creation, None for external; keys are cluster names. ``files``: (kind, compose name) → body.

    ``external``: (kind, compose name) → cluster name of what must be there.
    """

    stack: str
    project: Project
    networks: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    network_names: dict[str, str] = field(default_factory=dict)
    files: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    external: dict[tuple[str, str], str] = field(default_factory=dict)

    def services(self, ids: Mapping[tuple[str, str], tuple[str, str]]) -> dict[str, dict[str, Any]]:
        """Cluster name → spec; ``ids``: (kind, compose name) → (id, cluster name)."""
        specs: dict[str, dict[str, Any]] = {}
        for name, service in self.project.services.items():
            if not _SERVICE.fullmatch(name):
                raise InvalidArgument(f"services.{name}: invalid name: letters, digits, and . _ -, 62 at most")
            specs[scoped(self.stack, name)] = service_spec(
                self.stack,
                name,
                mapping(service, f"services.{name}"),
                service_environment(self.project, name),
                networks=self.network_names,
                volumes=self.project.section("volumes"),
                ids=ids,
                services=self.project.services,
            )
        return specs


def make(stack: str, project: Project) -> Plan:
    """The plan of a stack. Raises InvalidArgument for whatever cannot be."""
    plan = Plan(check_stack_name(stack), project)
    _plan_networks(plan)
    for kind in KINDS:
        _plan_files(plan, kind)
    # Ids are not known yet, but all else that can be wrong in a service shows.
    plan.services(dict.fromkeys((*plan.files, *plan.external), ("", "")))
    return plan


def _external(body: Mapping[str, Any], name: str, path: str) -> str:
    """The cluster name of an external object; empty when it is the stack's own."""
    external = body.get("external")
    if isinstance(external, Mapping):
        return str(external.get("name") or body.get("name") or name)
    if external is None or not truth(external, f"{path}.external"):
        return ""
    if extra := sorted(set(body) - {"external", "name"}):
        raise InvalidArgument(f"{path}.{extra[0]}: an external object is taken as it is; remove the key or external")
    return str(body.get("name") or name)


def _used_networks(project: Project) -> list[str]:
    used: dict[str, None] = {}
    for name, service in project.services.items():
        given = service.get("networks")
        if given is None:
            used["default"] = None
            continue
        entries = given if isinstance(given, list) else mapping(given, f"services.{name}.networks")
        used.update(dict.fromkeys(str(entry) for entry in entries))
    return list(used)


def _plan_networks(plan: Plan) -> None:
    declared = plan.project.section("networks")
    for name in _used_networks(plan.project):
        if name not in declared and name != "default":
            # The service's own check says where it is used.
            continue
        body = declared.get(name, {})
        path = f"networks.{name}"
        if external := _external(body, name, path):
            plan.network_names[name] = external
            plan.networks[external] = None
            continue
        full = str(body.get("name") or scoped(plan.stack, name))
        plan.network_names[name] = full
        plan.networks[full] = _network(plan.stack, full, body, path)


def _network(stack: str, full: str, body: Mapping[str, Any], path: str) -> dict[str, Any]:
    out: dict[str, Any] = {
        "Name": full,
        "Driver": str(body.get("driver") or "overlay"),
        "Labels": {**labels(body.get("labels"), f"{path}.labels"), NAMESPACE: stack},
        "Options": labels(body.get("driver_opts"), f"{path}.driver_opts"),
    }
    for key, theirs in (("attachable", "Attachable"), ("internal", "Internal"), ("enable_ipv6", "EnableIPv6")):
        if body.get(key) is not None:
            out[theirs] = truth(body[key], f"{path}.{key}")
    ipam = mapping(body.get("ipam"), f"{path}.ipam")
    if ipam:
        if unknown := sorted(set(ipam) - {"driver", "config", "options"}):
            raise InvalidArgument(f"unknown key {path}.ipam.{unknown[0]}; known here are config, driver, options")
        pools = [mapping(entry, f"{path}.ipam.config") for entry in sequence(ipam.get("config"), f"{path}.ipam.config")]
        out["IPAM"] = {"Driver": str(ipam.get("driver") or "default"), "Config": [_pool(pool, path) for pool in pools]}
    return out


def _pool(pool: Mapping[str, Any], path: str) -> dict[str, str]:
    names = {"subnet": "Subnet", "gateway": "Gateway", "ip_range": "IPRange"}
    if unknown := sorted(set(pool) - set(names)):
        raise InvalidArgument(f"unknown key {path}.ipam.config.{unknown[0]}; known here are {', '.join(names)}")
    return {names[key]: str(value) for key, value in pool.items()}


def _plan_files(plan: Plan, kind: str) -> None:
    for name, body in plan.project.section(f"{kind}s").items():
        path = f"{kind}s.{name}"
        if external := _external(body, name, path):
            plan.external[kind, name] = external
            continue
        plan.files[kind, name] = {
            "Name": str(body.get("name") or scoped(plan.stack, name)),
            "Labels": {**labels(body.get("labels"), f"{path}.labels"), NAMESPACE: plan.stack},
            "Data": base64.b64encode(file_data(plan.project, kind, name)).decode(),
        }
