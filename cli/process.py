"""``cluster daemon``, ``manager``, ``worker``: the processes of a node, each imported only when it is the one to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.flags import Flag, with_flags
from covey.errors import InvalidArgument

app = typer.Typer()

_LEVELS = ("debug", "info", "warning", "error")
_PROFILES = ("default", "test")

_SHARED = (
    Flag("--data-root", str, "Where everything is kept (/var/lib/covey)"),
    Flag("--exec-root", str, "Where sockets and running state are (/run/covey)"),
    Flag("--profile", str, "Timers: default, or test"),
    Flag("--log-level", str, ", ".join(_LEVELS)),
)
_NODE = (
    *_SHARED,
    Flag("--cgroup-parent", str, "The cgroup all containers are under (/covey)"),
    Flag("--name", str, "The node's name, its host name unless given"),
    Flag("--label", list, "An engine label, key=value, for constraints"),
    Flag(
        "--node-generic-resource", list, "What else the node has for tasks to reserve: KIND=NAME, each of them, or KIND=NUMBER"
    ),
    Flag("--etcd", str, "The etcd binary (etcd)"),
    Flag("--add-runtime", list, "Another OCI runtime, NAME=PATH, for containers that ask for it by name"),
    Flag("--default-runtime", str, "The runtime of containers that ask for none (covey)"),
    Flag("--warm-pool", int, "How many sandboxes are kept ready for containers to come (3); 0 for none"),
    Flag("--image-gc", str, "When unused images go: off, or high=PERCENT,low=PERCENT,age=TIME,grace=TIME (high=90,low=80)"),
    Flag("--blob-port", str, "Where other nodes fetch this node's images, [host:]port (2378); 0: through a manager instead"),
    Flag("--blob-rate", int, "The most bytes a second that are sent there; no limit unless given"),
    Flag("--registry", str, "Serve this node's images as a registry, at [host:]port of a loopback address"),
    Flag("--userns-remap", str, "Run containers in a user namespace: default, or USER[:GROUP] of /etc/subuid and /etc/subgid"),
)
_REGISTRIES = (
    Flag("--insecure-registry", list, "host[:port] or a network: a registry reached over plain http, or by any certificate"),
    Flag("--registry-mirror", list, "http(s)://host[:port] that is asked before Docker Hub"),
    Flag("--registry-config", str, "A Docker config.json whose logins and helpers serve pulls that bring none"),
    Flag("--max-concurrent-downloads", int, "Layers of one image that are pulled at once (3)"),
    Flag("--max-concurrent-uploads", int, "Layers of one image that are pushed at once (5)"),
)
#: What containers of this node may not ask for; the names are worker.containers.policy's.
_POLICY = (
    Flag("--no-privileged", bool, "Refuse privileged containers and execs"),
    Flag("--no-host-namespaces", bool, "Refuse sharing namespaces of the host"),
    Flag("--no-devices", bool, "Refuse devices of the host"),
    Flag("--no-capabilities", bool, "Refuse capabilities beyond Docker's fourteen"),
    Flag("--no-unconfined", bool, "Refuse security options that lift seccomp, masks or labels"),
    Flag("--no-binds", bool, "Refuse mounts of host paths, and volumes with options"),
)
_LISTENERS = (
    Flag("--host -H", list, "unix:///path or tcp://host:port; may be given several times"),
    Flag("--insecure", bool, "Allow plain TCP, on loopback only"),
    Flag("--tls-ca --tlscacert", str, "Certificates of the CA that clients' are signed with"),
    Flag("--tls-cert --tlscert", str, "The daemon's certificate"),
    Flag("--tls-key --tlskey", str, "Its key"),
)
_PATHS = {"data_root", "exec_root", "registry_config", "tls_ca", "tls_cert", "tls_key", "store_ca", "store_cert", "store_key"}
_NAMES = {
    "host": "hosts",
    "label": "labels",
    "add_runtime": "runtimes",
    "etcd": "etcd_binary",
    "node_generic_resource": "generic_resources",
    "insecure_registry": "insecure_registries",
    "registry_mirror": "registry_mirrors",
}
#: Options whose value is one of a few.
_CHOICES = {"profile": _PROFILES, "log_level": _LEVELS}


def chosen(flags: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, by the names of the processes' option classes."""
    for name, allowed in _CHOICES.items():
        if flags.get(name) not in (None, *allowed):
            raise InvalidArgument(f"--{name.replace('_', '-')} {flags[name]!r} is none of {', '.join(allowed)}")
    given = {name: value for name, value in flags.items() if value is not None and value is not False and value != []}
    return {
        _NAMES.get(name, name): Path(value).absolute() if name in _PATHS else tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
    }


def _run_node(options: dict[str, Any]) -> int:
    from worker.daemon import DaemonOptions, run

    refused = tuple(name.removeprefix("no_").replace("_", "-") for name in options if name.startswith("no_"))
    return run(DaemonOptions(**{name: value for name, value in options.items() if not name.startswith("no_")}, refused=refused))


@app.command("daemon")
@with_flags(_NODE, _REGISTRIES, _POLICY, _LISTENERS)
def daemon(**flags: Any) -> None:
    """Run the node daemon: containers of this node, and its part in a cluster."""
    raise typer.Exit(_run_node(chosen(flags)))


@app.command("worker")
@with_flags(_NODE, _REGISTRIES, _POLICY)
def worker(**flags: Any) -> None:
    """Run a worker alone: a node daemon that only <exec-root>/daemon.sock reaches, to join with."""
    options = chosen(flags)
    private = options.get("exec_root", Path("/run/covey")) / "daemon.sock"
    raise typer.Exit(_run_node({**options, "hosts": (f"unix://{private}",)}))


@app.command("manager")
@with_flags(_SHARED)
def manager(
    listen: Annotated[str | None, typer.Option(help="The cluster port's host:port", show_default=False)] = None,
    advertise: Annotated[str | None, typer.Option(help="Under which others reach it", show_default=False)] = None,
    store: Annotated[str | None, typer.Option(help="etcd's endpoints, http://host:port[,…]", show_default=False)] = None,
    store_ca: Annotated[str | None, typer.Option(show_default=False)] = None,
    store_cert: Annotated[str | None, typer.Option(show_default=False)] = None,
    store_key: Annotated[str | None, typer.Option(show_default=False)] = None,
    store_root: Annotated[str | None, typer.Option(help="The prefix of all keys", show_default=False)] = None,
    **flags: Any,
) -> None:
    """Run a manager process alone; the node daemon starts its own."""
    given = {
        **flags,
        "listen": listen,
        "advertise": advertise,
        "store": store.split(",") if store else None,
        "store_ca": store_ca,
        "store_cert": store_cert,
        "store_key": store_key,
        "store_root": store_root,
    }
    from manager.main import run
    from manager.options import ManagerOptions

    raise typer.Exit(run(ManagerOptions(**chosen(given))))
