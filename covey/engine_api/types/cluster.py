"""Nodes, the swarm, secrets and configs: request objects and their rules.

Source: Engine API 1.52, NodeSpec, SwarmSpec, SwarmInitRequest, SwarmJoinRequest, SecretSpec, ConfigSpec.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Mapping
from typing import Any, Literal

from covey.engine_api.types import rules
from covey.engine_api.types.base import Int64, ListOf, Model, Natural, Port, StringMap, refuse, validate
from covey.engine_api.types.service import DriverConfigFields

SECRET_LIMIT = 500 * 1024
CONFIG_LIMIT = 1000 * 1024
MINIMUM_CERTIFICATE_LIFE = 3600 * 10**9


class DrainFields(Model, frozen=True, kw_only=True):
    """Ours: how a drained node is emptied. ``Parallelism`` moves at once (absent is 1, 0 all) in ``Order`` (absent: each
    service's own), until ``Deadline`` nanoseconds have passed (absent or 0: none)."""

    Parallelism: Natural | None = None
    Order: Literal["", "stop-first", "start-first"] | None = None
    Deadline: Natural | None = None


class NodeSpec(Model, frozen=True, kw_only=True):
    """What the user wants of a node."""

    Name: str | None = None
    Labels: StringMap
    Role: Literal["worker", "manager"]
    Availability: Literal["active", "pause", "drain"]
    Drain: DrainFields | None = None


class RaftFields(Model, frozen=True, kw_only=True):
    SnapshotInterval: Natural | None = None
    KeepOldSnapshots: Natural | None = None
    LogEntriesForSlowFollowers: Natural | None = None
    ElectionTick: Int64 | None = None
    HeartbeatTick: Int64 | None = None


class OrchestrationFields(Model, frozen=True, kw_only=True):
    TaskHistoryRetentionLimit: Int64 | None = None


class DispatcherFields(Model, frozen=True, kw_only=True):
    HeartbeatPeriod: Int64 | None = None


class CAConfigFields(Model, frozen=True, kw_only=True):
    NodeCertExpiry: Int64 | None = None
    ExternalCAs: ListOf[dict[str, Any]]
    SigningCACert: str | None = None
    SigningCAKey: str | None = None
    ForceRotate: Natural | None = None


class SwarmSpec(Model, frozen=True, kw_only=True):
    """Settings of the cluster."""

    Name: str | None = None
    Labels: StringMap
    Orchestration: OrchestrationFields | None = None
    Raft: RaftFields | None = None
    Dispatcher: DispatcherFields | None = None
    CAConfig: CAConfigFields | None = None
    EncryptionConfig: dict[str, Any] | None = None
    TaskDefaults: dict[str, Any] | None = None


class SwarmInit(Model, frozen=True, kw_only=True):
    """POST /swarm/init. Addresses are ``host[:port]`` or an interface's name."""

    ListenAddr: str | None = None
    AdvertiseAddr: str | None = None
    DataPathAddr: str | None = None
    DataPathPort: Port | None = None
    DefaultAddrPool: ListOf[str]
    SubnetSize: Natural | None = None
    ForceNewCluster: bool | None = None
    AutoLockManagers: bool | None = None
    Availability: Literal["", "active", "pause", "drain"] | None = None
    Spec: SwarmSpec | None = None


class SwarmJoin(Model, frozen=True, kw_only=True):
    """POST /swarm/join."""

    ListenAddr: str | None = None
    AdvertiseAddr: str | None = None
    DataPathAddr: str | None = None
    RemoteAddrs: ListOf[str]
    JoinToken: str | None = None
    Availability: Literal["", "active", "pause", "drain"] | None = None


class SecretSpec(Model, frozen=True, kw_only=True):
    """``Data`` is base64 (standard or URL-safe)."""

    Name: str | None = None
    Labels: StringMap
    Data: str | None = None
    Driver: DriverConfigFields | None = None
    Templating: DriverConfigFields | None = None


class ConfigSpec(Model, frozen=True, kw_only=True):
    Name: str | None = None
    Labels: StringMap
    Data: str | None = None
    Templating: DriverConfigFields | None = None


def check_swarm_spec(spec: SwarmSpec, prefix: str = "") -> None:
    """Nothing negative, certificates of an hour at the least. Raises InvalidArgument."""
    expiry = spec.CAConfig.NodeCertExpiry if spec.CAConfig is not None else None
    if expiry and expiry < MINIMUM_CERTIFICATE_LIFE:
        raise refuse(f"{prefix}CAConfig.NodeCertExpiry", "minimum certificate expiry time must be at least 1h0m0s")
    if spec.Dispatcher is not None:
        rules.check_not_negative(
            f"{prefix}Dispatcher.HeartbeatPeriod", spec.Dispatcher.HeartbeatPeriod, "heartbeat time period"
        )


def validate_swarm_spec(raw: Mapping[str, Any]) -> SwarmSpec:
    """POST /swarm/update."""
    spec = validate(SwarmSpec, raw)
    check_swarm_spec(spec)
    return spec


def validate_swarm_init(raw: Mapping[str, Any]) -> SwarmInit:
    """POST /swarm/init: address pools are networks, and their subnets fit into them."""
    init = validate(SwarmInit, raw)
    if init.Spec is not None:
        check_swarm_spec(init.Spec, "Spec.")
    for number, pool in enumerate(init.DefaultAddrPool):
        try:
            network = ipaddress.ip_network(pool)
        except ValueError as error:
            raise refuse(f"DefaultAddrPool[{number}]", f"invalid default address pool {pool!r}: {error}") from None
        if init.SubnetSize and not network.prefixlen <= init.SubnetSize <= network.max_prefixlen - 3:
            raise refuse("SubnetSize", f"subnets of size /{init.SubnetSize} do not fit into the address pool {pool}")
    if init.DataPathPort and not 1024 <= init.DataPathPort <= 49151:
        raise refuse("DataPathPort", f"invalid port number {init.DataPathPort}: the data path port is 1024 to 49151")
    return init


def validate_swarm_join(raw: Mapping[str, Any]) -> SwarmJoin:
    """POST /swarm/join: a token and where a manager is."""
    join = validate(SwarmJoin, raw)
    if not join.RemoteAddrs or not all(join.RemoteAddrs):
        raise refuse("RemoteAddrs", "at least 1 RemoteAddr is required to join")
    if not join.JoinToken:
        raise refuse("JoinToken", "a join token is required: ask a manager with `cluster join-token worker`")
    return join


def decode_data(field: str, text: str) -> bytes:
    """Base64 of either alphabet. Raises InvalidArgument."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise refuse(field, "data is not valid base64") from None


def _check_data(kind: str, data: str | None, limit: int) -> None:
    size = len(decode_data("Data", data or ""))
    if not 0 < size < limit:
        raise refuse("Data", f"{kind} data must be larger than 0 and less than {limit} bytes")


def validate_secret_spec(raw: Mapping[str, Any], update: bool = False) -> SecretSpec:
    """A secret; an ``update`` may leave the data out, as it cannot change."""
    spec = validate(SecretSpec, raw)
    rules.check_object_name("Name", spec.Name)
    if spec.Driver is not None and spec.Driver.Name:
        raise refuse("Driver", f'secret driver "{spec.Driver.Name}" is not supported: leave Driver out')
    if not (update and spec.Data is None):
        _check_data("secret", spec.Data, SECRET_LIMIT)
    return spec


def validate_config_spec(raw: Mapping[str, Any], update: bool = False) -> ConfigSpec:
    """A config; an ``update`` may leave the data out, as it cannot change."""
    spec = validate(ConfigSpec, raw)
    rules.check_object_name("Name", spec.Name)
    if not (update and spec.Data is None):
        _check_data("config", spec.Data, CONFIG_LIMIT)
    return spec
