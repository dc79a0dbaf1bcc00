"""``cluster init``, ``join``, ``leave``, ``join-token``: how this node comes into a cluster and out of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.connection import client
from covey.engine_api.light import Client
from covey.errors import InvalidArgument

app = typer.Typer()

Advertise = Annotated[str, typer.Option("--advertise-addr", help="host[:port] under which others reach this node")]
Listen = Annotated[str, typer.Option("--listen-addr", help="Where the cluster port listens")]
Availability = Annotated[str, typer.Option(help="active, pause or drain")]
_PORT = "2377"


@app.command("init")
def init(
    advertise_addr: Advertise = "",
    listen_addr: Listen = "0.0.0.0:2377",
    availability: Availability = "active",
    default_addr_pool: Annotated[
        list[str] | None, typer.Option(help="Where networks take their subnets from, in CIDR form", show_default=False)
    ] = None,
    default_addr_pool_mask_length: Annotated[int, typer.Option(help="Length of each network's prefix")] = 24,
    force_new_cluster: Annotated[bool, typer.Option("--force-new-cluster")] = False,
) -> None:
    """Make a cluster with this node as its manager."""
    body: dict[str, Any] = {
        "ListenAddr": listen_addr,
        "AdvertiseAddr": advertise_addr,
        "Availability": availability,
        "ForceNewCluster": force_new_cluster,
        "AutoLockManagers": False,
        "Spec": {"Labels": {}},
    }
    if default_addr_pool:
        body |= {"DefaultAddrPool": default_addr_pool, "SubnetSize": default_addr_pool_mask_length}
    with client() as api:
        node = api.post("/swarm/init", json=body)
        print(f"Cluster made: this node ({node}) is its manager.\n")
        print("To add a worker, run on it:\n")
        print(f"    cluster join --token {_tokens(api)['Worker']} {_address(api)}\n")
        print("To add a manager, ask `cluster join-token manager` for the command.")


def _tokens(api: Client) -> dict[str, str]:
    return dict(api.get("/swarm")["JoinTokens"])


def _address(api: Client) -> str:
    """host:port of this manager."""
    swarm = (api.get("/info") or {}).get("Swarm") or {}
    own = next((one["Addr"] for one in swarm.get("RemoteManagers") or () if one.get("NodeID") == swarm.get("NodeID")), "")
    return own or f"{swarm.get('NodeAddr', '')}:{_PORT}"


@app.command("join")
def join(
    remotes: Annotated[list[str], typer.Argument(metavar="HOST[:PORT]...", show_default=False)],
    token: Annotated[str, typer.Option(help="From `cluster join-token`", show_default=False)],
    advertise_addr: Advertise = "",
    listen_addr: Listen = "0.0.0.0:2377",
    availability: Availability = "active",
) -> None:
    """Join the cluster of the managers named."""
    body = {
        "ListenAddr": listen_addr,
        "AdvertiseAddr": advertise_addr,
        "RemoteAddrs": remotes,
        "JoinToken": token,
        "Availability": availability,
    }
    with client() as api:
        api.post("/swarm/join", json=body)
        swarm = (api.get("/info") or {}).get("Swarm") or {}
    role = "manager" if swarm.get("ControlAvailable") else "worker"
    print(f"This node joined a cluster as a {role}.")


@app.command("leave")
def leave(force: Annotated[bool, typer.Option("--force", "-f", help="Even if this is a manager")] = False) -> None:
    """Leave the cluster."""
    with client() as api:
        api.post("/swarm/leave", {"force": force or None})
    print("Node left the cluster.")


@app.command("join-token")
def join_token(
    role: Annotated[str, typer.Argument(help="worker or manager", show_default=False)],
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one; the old ones end")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the token")] = False,
) -> None:
    """Show or rotate the tokens nodes join with."""
    if role not in ("worker", "manager"):
        raise InvalidArgument(f"unknown role {role!r}: use worker or manager")
    with client() as api:
        if rotate:
            swarm = api.get("/swarm")
            query = {"version": swarm["Version"]["Index"], f"rotate{role.capitalize()}Token": True}
            api.post("/swarm/update", query, swarm["Spec"])
            if not quiet:
                print(f"Successfully rotated {role} join token.\n")
        token = _tokens(api)[role.capitalize()]
        if quiet:
            print(token)
            return
        print(f"To add a {role} to this cluster, run on it:\n\n    cluster join --token {token} {_address(api)}\n")
