"""Networks and volumes: request objects and their rules.

Whether a subnet is free or a driver is there is for the rooms that own them. Source: Engine API 1.52,
NetworkCreateRequest, VolumeCreateRequest. Words: dockerd's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from covey.engine_api.types import rules
from covey.engine_api.types.base import ListOf, Model, StringMap, refuse, validate
from covey.engine_api.types.container import EndpointSettings


class IPAMPool(Model, frozen=True, kw_only=True):
    Subnet: str | None = None
    IPRange: str | None = None
    Gateway: str | None = None
    AuxiliaryAddresses: StringMap


class IPAMFields(Model, frozen=True, kw_only=True):
    Driver: str | None = None
    Config: ListOf[IPAMPool]
    Options: StringMap


class NetworkCreate(Model, frozen=True, kw_only=True):
    """POST /networks/create."""

    Name: str | None = None
    CheckDuplicate: bool | None = None
    Driver: str | None = None
    Scope: str | None = None
    Internal: bool | None = None
    Attachable: bool | None = None
    Ingress: bool | None = None
    ConfigOnly: bool | None = None
    ConfigFrom: dict[str, Any] | None = None
    IPAM: IPAMFields | None = None
    EnableIPv4: bool | None = None
    EnableIPv6: bool | None = None
    Options: StringMap
    Labels: StringMap


class NetworkConnect(Model, frozen=True, kw_only=True):
    """POST /networks/{id}/connect."""

    Container: str | None = None
    EndpointConfig: EndpointSettings | None = None


class NetworkDisconnect(Model, frozen=True, kw_only=True):
    """POST /networks/{id}/disconnect."""

    Container: str | None = None
    Force: bool | None = None


class VolumeCreate(Model, frozen=True, kw_only=True):
    """POST /volumes/create; no name: the daemon chooses one."""

    Name: str | None = None
    Driver: str | None = None
    DriverOpts: StringMap
    Labels: StringMap
    ClusterVolumeSpec: dict[str, Any] | None = None


def _check_pool(field: str, pool: IPAMPool) -> None:
    if not pool.Subnet:
        if pool.Gateway or pool.IPRange:
            raise refuse(f"{field}.Subnet", "invalid IPAM configuration: a gateway or range needs its subnet")
        return
    try:
        subnet = ipaddress.ip_network(pool.Subnet)
    except ValueError as error:
        raise refuse(f"{field}.Subnet", f"invalid subnet {pool.Subnet}: {error}") from None
    if pool.Gateway:
        try:
            inside = ipaddress.ip_address(pool.Gateway) in subnet
        except ValueError as error:
            raise refuse(f"{field}.Gateway", f"invalid gateway address: {error}") from None
        if not inside:
            raise refuse(f"{field}.Gateway", f"invalid gateway {pool.Gateway}: it is not in the subnet {subnet}")
    if pool.IPRange:
        try:
            part = ipaddress.ip_network(pool.IPRange)
            inside = part.version == subnet.version and part.subnet_of(subnet)  # type: ignore[arg-type]
        except ValueError as error:
            raise refuse(f"{field}.IPRange", f"invalid ip-range {pool.IPRange}: {error}") from None
        if not inside:
            raise refuse(f"{field}.IPRange", f"invalid ip-range {pool.IPRange}: it is not in the subnet {subnet}")


def validate_network_create(raw: Mapping[str, Any]) -> NetworkCreate:
    """The request, if it can be. Raises InvalidArgument that names the field."""
    request = validate(NetworkCreate, raw)
    if not request.Name or not request.Name.strip():
        raise refuse("Name", "invalid network name: name is empty")
    if not rules.RESTRICTED_NAME.fullmatch(request.Name) and not rules.DNS_NAME.fullmatch(request.Name):
        raise refuse("Name", f"invalid network name {request.Name!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    if request.Scope not in (None, "", "local", "swarm"):
        raise refuse("Scope", f"invalid network scope {request.Scope!r}: use local or swarm")
    for number, pool in enumerate(request.IPAM.Config if request.IPAM else []):
        _check_pool(f"IPAM.Config[{number}]", pool)
    return request


def validate_volume_create(raw: Mapping[str, Any]) -> VolumeCreate:
    """The request, if it can be. Raises InvalidArgument that names the field."""
    request = validate(VolumeCreate, raw)
    if request.Name and not rules.RESTRICTED_NAME.fullmatch(request.Name):
        raise refuse(
            "Name",
            f'create {request.Name}: "{request.Name}" includes invalid characters for a local volume name, '
            "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed. If you intended to pass a host directory, use absolute path",
        )
    if request.ClusterVolumeSpec is not None:
        raise refuse("ClusterVolumeSpec", "cluster volumes are not supported: leave ClusterVolumeSpec out")
    return request
