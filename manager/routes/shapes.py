"""Objects of the store as the Engine API shows them: swarm, nodes, networks, secrets, configs. Pure.

Services and tasks are in service_shapes.py. Shapes: reference/engine-api-v1.52.yaml, definitions of the same names.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from covey.clock import rfc3339
from covey.model.objects import Cluster, Config, DrainPolicy, Network, NetworkAllocation, Secret
from covey.model.resources import NANO, show_resources
from scheduler.snapshot import NodeView, Snapshot

DEFAULT_SWARM_SPEC: dict[str, Any] = {
    "Name": "default",
    "Labels": {},
    "Orchestration": {"TaskHistoryRetentionLimit": 5},
    "Raft": {},
    "Dispatcher": {"HeartbeatPeriod": 5_000_000_000},
    "CAConfig": {"NodeCertExpiry": 7_776_000_000_000_000},
    "TaskDefaults": {},
    "EncryptionConfig": {"AutoLockManagers": False},
}


def stamps(item: Any) -> dict[str, Any]:
    """Version and times that every cluster object shows."""
    updated = getattr(item, "updated_at", 0.0) or item.created_at
    return {"Version": {"Index": item.version}, "CreatedAt": rfc3339(item.created_at), "UpdatedAt": rfc3339(updated)}


def show_cluster(cluster: Cluster, trust: Mapping[str, str]) -> dict[str, Any]:
    """ClusterInfo; ``trust`` is the TLSInfo."""
    return {
        "ID": cluster.id,
        **stamps(cluster),
        "Spec": {**DEFAULT_SWARM_SPEC, **cluster.spec},
        "TLSInfo": dict(trust),
        "RootRotationInProgress": False,
        "DataPathPort": cluster.data_path_port,
        "DefaultAddrPool": list(cluster.address_pools),
        "SubnetSize": cluster.subnet_size,
    }


def manager_nodes(snapshot: Snapshot) -> list[NodeView]:
    """The nodes whose role is manager, by id."""
    return [view for _, view in sorted(snapshot.nodes.items()) if view.node.role == "manager"]


def show_swarm_info(snapshot: Snapshot, node_id: str, address: str, cluster: Mapping[str, Any]) -> dict[str, Any]:
    """The SwarmInfo of a manager's ``/info``; ``address`` is host:port of this manager, ``cluster`` its ClusterInfo."""
    managers = manager_nodes(snapshot)
    remotes = [{"NodeID": view.id, "Addr": _manager_address(snapshot, view, node_id, address)} for view in managers]
    return {
        "NodeID": node_id,
        "NodeAddr": address.rpartition(":")[0].strip("[]"),
        "LocalNodeState": "active",
        "ControlAvailable": True,
        "Error": "",
        "RemoteManagers": [remote for remote in remotes if remote["Addr"]],
        "Nodes": len(snapshot.nodes),
        "Managers": len(managers),
        "Cluster": dict(cluster),
    }


def _manager_address(snapshot: Snapshot, view: NodeView, node_id: str = "", address: str = "") -> str:
    if view.id == node_id:
        return address
    if snapshot.leader is not None and snapshot.leader.node_id == view.id:
        return snapshot.leader.address
    return view.info.manager_address if view.info else ""


def show_node(snapshot: Snapshot, view: NodeView, trust: Mapping[str, str]) -> dict[str, Any]:
    """A Node; what was never written shows Docker's defaults (state unknown)."""
    node, info, status = view.node, view.info, view.status
    description = info.description if info else None
    shown: dict[str, Any] = {
        "ID": node.id,
        **stamps(node),
        "Spec": {
            **({"Name": node.name} if node.name else {}),
            "Labels": dict(node.labels),
            "Role": node.role,
            "Availability": node.availability,
            **({"Drain": _show_drain(node.drain)} if node.drain is not None else {}),
        },
        "Description": {
            "Hostname": view.hostname,
            "Platform": {
                "Architecture": description.architecture if description else "",
                "OS": description.os if description else "",
            },
            "Resources": show_resources(description.resources) if description else {},
            "Engine": {
                "EngineVersion": description.engine_version if description else "",
                "Labels": dict(description.engine_labels) if description else {},
                "Plugins": [{"Type": kind, "Name": name} for kind, name in (description.plugins if description else ())],
            },
            "TLSInfo": dict(trust),
        },
        "Status": {
            "State": status.state if status else "unknown",
            **({"Message": status.message} if status and status.message else {}),
            "Addr": info.address if info else "",
        },
    }
    if node.role == "manager":
        leads = snapshot.leader is not None and snapshot.leader.node_id == node.id
        alive = leads or (status is not None and status.state == "ready")
        shown["ManagerStatus"] = {
            **({"Leader": True} if leads else {}),
            "Reachability": "reachable" if alive else "unreachable",
            "Addr": _manager_address(snapshot, view),
        }
    return shown


def _show_drain(policy: DrainPolicy) -> dict[str, Any]:
    return {
        "Parallelism": policy.parallelism,
        **({"Order": policy.order} if policy.order else {}),
        **({"Deadline": int(policy.deadline * NANO)} if policy.deadline else {}),
    }


def show_network(network: Network, allocation: NetworkAllocation | None) -> dict[str, Any]:
    """A cluster-scope Network, with the addresses the leader gave it, or those asked for until then."""
    spec = network.spec
    ipam = spec.get("IPAM") or {}
    given = [{"Subnet": s, "Gateway": g} for s, g in zip(allocation.subnets, allocation.gateways)] if allocation else []
    options = dict(spec.get("Options") or {})
    if allocation and allocation.vxlan_id:
        options["com.docker.network.driver.overlay.vxlanid_list"] = str(allocation.vxlan_id)
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339(network.created_at),
        "Scope": "swarm",
        "Driver": spec.get("Driver") or "overlay",
        "EnableIPv4": True,
        "EnableIPv6": bool(spec.get("EnableIPv6")),
        "IPAM": {
            "Driver": ipam.get("Driver") or "default",
            "Options": ipam.get("Options"),
            "Config": given or list(ipam.get("Config") or []),
        },
        "Internal": bool(spec.get("Internal")),
        "Attachable": bool(spec.get("Attachable")),
        "Ingress": bool(spec.get("Ingress")),
        "ConfigFrom": spec.get("ConfigFrom") or {"Network": ""},
        "ConfigOnly": bool(spec.get("ConfigOnly")),
        "Containers": {},
        "Options": options,
        "Labels": dict(spec.get("Labels") or {}),
    }


def show_secret(secret: Secret) -> dict[str, Any]:
    """A Secret: never its data."""
    return {"ID": secret.id, **stamps(secret), "Spec": {"Labels": {}, **secret.spec}}


def show_config(config: Config) -> dict[str, Any]:
    """A Config, with its data."""
    data = base64.b64encode(config.data).decode()
    return {"ID": config.id, **stamps(config), "Spec": {"Labels": {}, **config.spec, "Data": data}}
