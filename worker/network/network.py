"""One network of a node: what its record holds, its options by Docker's names, its shape in Docker's inspect.

A pure value; Networks makes, finds and removes them.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from worker.network.endpoint import Attachment, Endpoint, Subnet

PREDEFINED = ("bridge", "host", "none")
BRIDGE_NAME = "com.docker.network.bridge.name"
MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
ICC = "com.docker.network.bridge.enable_icc"
HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
MTU = "com.docker.network.driver.mtu"


@dataclass(frozen=True)
class Network:
    """One network of this node, as on disk. ``driver`` is bridge, host or null; ``bridge`` its link's name."""

    id: str
    name: str
    driver: str
    created: str
    scope: str = "local"
    subnets: tuple[Subnet, ...] = ()
    bridge: str = ""
    internal: bool = False
    attachable: bool = False
    enable_ipv6: bool = False
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    configured: bool = False
    version: int = 1

    @property
    def user_defined(self) -> bool:
        """A bridge other than the default one: names resolve on it."""
        return self.driver == "bridge" and self.name not in PREDEFINED

    @property
    def mtu(self) -> int:
        return int(self.options.get(MTU, "1500"))

    @property
    def mac(self) -> str:
        """A bridge's address is derived from the network's id: it never changes with its ports or a restart."""
        return "02:42:" + hashlib.sha256(self.id.encode()).digest()[:4].hex(":")

    def flag(self, option: str, default: bool = True) -> bool:
        return self.options.get(option, str(default)).lower() in ("true", "1")

    def subnet(self, version: int) -> Subnet | None:
        return next((one for one in self.subnets if ipaddress.ip_network(one.subnet).version == version), None)

    def inspect(self, attachments: Iterable[Attachment]) -> dict[str, Any]:
        """Docker's Network (engine-api-v1.52), with the containers that are on it now."""
        config = []
        for one in self.subnets:
            entry: dict[str, Any] = {"Subnet": one.subnet, "Gateway": one.gateway}
            if one.ip_range:
                entry["IPRange"] = one.ip_range
            if one.auxiliary:
                entry["AuxiliaryAddresses"] = one.auxiliary
            config.append(entry)
        return {
            "Name": self.name,
            "Id": self.id,
            "Created": self.created,
            "Scope": self.scope,
            "Driver": self.driver,
            "EnableIPv4": self.driver == "bridge",
            "EnableIPv6": self.enable_ipv6,
            "IPAM": {"Driver": "default", "Options": None, "Config": config},
            "Internal": self.internal,
            "Attachable": self.attachable,
            "Ingress": False,
            "ConfigFrom": {"Network": ""},
            "ConfigOnly": False,
            "Containers": {
                attachment.container_id: _member(attachment.name, endpoint)
                for attachment in attachments
                for endpoint in attachment.endpoints
                if endpoint.network_id == self.id
            },
            "Options": dict(self.options),
            "Labels": dict(self.labels),
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        return cls(**{**record, "subnets": tuple(Subnet(**one) for one in record["subnets"])})


def _member(name: str, endpoint: Endpoint) -> dict[str, str]:
    return {
        "Name": name,
        "EndpointID": endpoint.id,
        "MacAddress": endpoint.mac,
        "IPv4Address": f"{endpoint.ipv4}/{endpoint.ipv4_prefix}" if endpoint.ipv4 else "",
        "IPv6Address": f"{endpoint.ipv6}/{endpoint.ipv6_prefix}" if endpoint.ipv6 else "",
    }
