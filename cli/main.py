"""The command ``cluster``: which nouns and verbs there are and where they live; how errors end the process.

Nothing a command needs is imported here: ``cluster node ls`` must answer in a tenth of a second.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import click
import typer
from typer.main import get_command

from cli.lazy import Entry, Root
from covey.errors import CoveyError

_CLUSTER, _CONTAINERS, _NODE, _PROCESSES = "Cluster", "Containers", "Node", "Processes"

TABLE: dict[str, Entry] = {
    "init": Entry("cli.swarm", "init", "Make a cluster with this node as its manager", _CLUSTER),
    "join": Entry("cli.swarm", "join", "Join a cluster as a worker or manager", _CLUSTER),
    "leave": Entry("cli.swarm", "leave", "Leave the cluster", _CLUSTER),
    "join-token": Entry("cli.swarm", "join-token", "Show or rotate the tokens nodes join with", _CLUSTER),
    "node": Entry("cli.node", "", "Manage the cluster's nodes", _CLUSTER),
    "service": Entry("cli.service", "", "Manage services", _CLUSTER),
    "stack": Entry("cli.stack.commands", "", "Manage stacks from compose files", _CLUSTER),
    "explain": Entry("cli.explain", "explain", "Show why a task is on its node, or why it waits", _CLUSTER),
    "story": Entry("cli.story", "story", "Tell a task's life from cradle to grave", _CLUSTER),
    "run": Entry("cli.run", "run", "Create and run a container on this node", _CONTAINERS),
    "exec": Entry("cli.run", "exec", "Run a command in a running container", _CONTAINERS),
    "attach": Entry("cli.run", "attach", "Attach to a running container", _CONTAINERS),
    "ps": Entry("cli.container", "ps", "List this node's containers", _CONTAINERS),
    "logs": Entry("cli.container", "logs", "Show a container's output", _CONTAINERS),
    "inspect": Entry("cli.inspect", "inspect", "Show all about an object of any kind", _CONTAINERS),
    "start": Entry("cli.container", "start", "Start containers", _CONTAINERS),
    "stop": Entry("cli.container", "stop", "Stop containers", _CONTAINERS),
    "kill": Entry("cli.container", "kill", "Send a signal to containers", _CONTAINERS),
    "rm": Entry("cli.container", "rm", "Remove containers", _CONTAINERS),
    "update": Entry("cli.container_live", "update", "Change limits and the restart policy of containers", _CONTAINERS),
    "stats": Entry("cli.container_live", "stats", "Show what containers use", _CONTAINERS),
    "commit": Entry("cli.build", "commit", "Make an image of a container's changes", _CONTAINERS),
    "diff": Entry("cli.container_live", "diff", "Show what a container changed in its file system", _CONTAINERS),
    "export": Entry("cli.container_live", "export", "Write a container's file system as a tar", _CONTAINERS),
    "container": Entry("cli.container", "", "Manage containers", _CONTAINERS),
    "login": Entry("cli.registry", "login", "Log in to a registry", _NODE),
    "logout": Entry("cli.registry", "logout", "Forget the login to a registry", _NODE),
    "registry": Entry("cli.registry_logins", "", "Manage the cluster's logins to registries", _CLUSTER),
    "pull": Entry("cli.image", "pull", "Get an image from a registry", _NODE),
    "push": Entry("cli.image", "push", "Send an image to a registry", _NODE),
    "image": Entry("cli.image", "", "Manage images", _NODE),
    "volume": Entry("cli.volume", "", "Manage volumes", _NODE),
    "network": Entry("cli.network", "", "Manage networks", _NODE),
    "build": Entry("cli.build", "build", "Build an image from a Dockerfile", _NODE),
    "events": Entry("cli.system", "events", "Show what happens, as it happens", _NODE),
    "info": Entry("cli.system", "info", "Show this node and its part in the cluster", _NODE),
    "version": Entry("cli.system", "version", "Show the versions of client and daemon", _NODE),
    "rebalance": Entry("cli.drain", "rebalance", "Move replicas that stand together to nodes with fewer of them", _CLUSTER),
    "daemon": Entry("cli.process", "daemon", "Run the node daemon", _PROCESSES),
    "manager": Entry("cli.process", "manager", "Run a manager process alone", _PROCESSES),
    "worker": Entry("cli.process", "worker", "Run a worker alone: a node daemon without client listeners", _PROCESSES),
    "lab": Entry("cli.lab", "", "A cluster of many nodes on this machine, with faults to inject", _PROCESSES),
}


class Cluster(Root):
    """The root with the table above."""

    table = TABLE


_app = typer.Typer(cls=Cluster, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"Covey version {version('covey')}")
        raise typer.Exit


@_app.callback(no_args_is_help=True)
def _root(
    host: Annotated[
        str | None, typer.Option("--host", "-H", help="The daemon's address, unix:///path or tcp://host:port (COVEY_HOST)")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", "-v", help="Print the version", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Containers on a handful of Linux machines, as one cluster."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status. 1: refused or failed, 2: wrong usage, 130: interrupted."""
    try:
        result = get_command(_app).main(args=argv, prog_name="cluster", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except CoveyError as error:
        return _failed(error.message)
    except BrokenPipeError:
        # Whoever reads our output has gone: not even the flush at exit may complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except RecursionError:
        return _failed("the input is nested too deeply")
    except Exception as error:
        if os.environ.get("COVEY_DEBUG"):
            raise
        kind = type(error).__name__
        return _failed(f"internal fault: {kind}: {error}; run again with COVEY_DEBUG=1 and report what it prints")


def _failed(message: str) -> int:
    print(f"cluster: {in_our_words(message)}", file=sys.stderr)
    return 1


def in_our_words(message: str) -> str:
    """A daemon's message as this command says it."""
    for theirs, ours in _OUR_WORDS.items():
        message = message.replace(theirs, ours)
    return message.strip()


#: Daemons say what the docker command is told; here it has another name.
_OUR_WORDS = {
    "docker swarm init": "cluster init",
    "docker swarm join": "cluster join",
    "docker swarm leave": "cluster leave",
    "docker swarm": "cluster",
}


def root() -> Any:
    """The click command, for the documentation and the tests."""
    return get_command(_app)


if __name__ == "__main__":
    sys.exit(main())
