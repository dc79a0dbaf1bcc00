"""What a manager process is told when it starts. Pure data and the reading of addresses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from covey.errors import InvalidArgument

DEFAULT_PORT = 2377


@dataclass(frozen=True, slots=True)
class ManagerOptions:
    """``listen`` and ``advertise`` are host or host:port; ``advertise`` "" is found out. ``store``: etcd endpoints.

    ``store_ca``, ``store_cert`` and ``store_key`` are paths of PEM files. ``profile`` names the timers (scheduler.settings).
    """

    data_root: Path = Path("/var/lib/covey")
    exec_root: Path = Path("/run/covey")
    listen: str = f"0.0.0.0:{DEFAULT_PORT}"
    advertise: str = ""
    store: tuple[str, ...] = ("http://127.0.0.1:2379",)
    store_ca: Path | None = None
    store_cert: Path | None = None
    store_key: Path | None = None
    store_root: str = "/covey"
    profile: str = "default"
    log_level: str = "info"

    @property
    def socket_path(self) -> Path:
        """The private socket on which the daemon reaches this manager."""
        return self.exec_root / "manager.sock"

    @property
    def node_id_path(self) -> Path:
        """Where this manager remembers which node it is."""
        return self.data_root / "manager" / "node_id"


def split_address(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """``host``, ``host:port`` or ``[v6]:port`` as (host, port). Raises InvalidArgument."""
    host, port = text, str(default_port)
    if text.startswith("[") and "]" in text:
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"address {text!r} is not host or host:port, like 192.0.2.1:{DEFAULT_PORT}")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The opposite of ``split_address``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
