"""``cluster stack``: groups of services from compose files."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Annotated, Any

import typer

from cli.connection import client, filters
from cli.flags import Filter, Format, NoTrunc, Quiet
from cli.output import Listing, warn
from covey.errors import CoveyError, InvalidArgument, NotFound

app = typer.Typer()

LISTING = Listing({"NAME": "Name", "SERVICES": "Services"}, quiet="Name")
Files = Annotated[
    list[str], typer.Option("--compose-file", "-c", help="A compose file; - is stdin; later ones go over earlier ones")
]
Stack = Annotated[str, typer.Argument(show_default=False)]
_LABEL = "com.docker.stack.namespace"


def _say(text: str) -> None:
    print(text, flush=True)


@app.command("deploy")
def deploy(
    stack: Stack,
    compose_file: Files,
    prune: Annotated[bool, typer.Option("--prune", help="Remove services the files no longer have")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait until it has converged")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has converged, as it does unless detached")] = False,
    timeout: Annotated[str | None, typer.Option(help="How long to wait, as 2m", show_default=False)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress")] = False,
    resolve_image: Annotated[
        str, typer.Option(help="Which services are held to what their image's tag means now: always, changed, never")
    ] = "always",
    with_registry_auth: Annotated[bool, typer.Option("--with-registry-auth", help="Nodes pull with your logins")] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Only show what would happen: exit status 0 nothing, 1 changes, 255 error")
    ] = False,
    form: Annotated[str | None, typer.Option("--format", help="How a plan is shown: json", show_default=False)] = None,
) -> None:
    """Make a stack of compose files, or bring it up to date."""
    from cli.progress import wait_converged, watch_before
    from cli.registry import image_login
    from cli.service_image import meanings
    from cli.stack import deploy as deployment
    from cli.stack.files import load
    from cli.stack.images import resolving
    from cli.stack.plan import make
    from cli.waiting import seconds

    if plan_only:
        from cli.plan import planning

        with planning(form) as rehearsal:
            resolve = resolving(resolve_image, partial(meanings, rehearsal.host.address))
            plan = make(stack, load(compose_file, os.environ, warn))
            deployment.deploy(rehearsal, plan, prune=prune, resolve=resolve, say=lambda _: None, warn=warn)
        return
    if form:
        raise InvalidArgument("--format is how a plan is shown: give --plan with it")
    limit = seconds(timeout)
    plan = make(stack, load(compose_file, os.environ, warn))
    with client() as api:
        resolve = resolving(resolve_image, partial(meanings, api.host.address))
        waits = wait or not detach
        before = watch_before(api, deployment.present(api, stack)) if waits else {}
        login = image_login if with_registry_auth else deployment.nobody
        services = deployment.deploy(api, plan, prune=prune, resolve=resolve, say=_say, warn=warn, login=login)
        if waits and (status := wait_converged(api, services, before, quiet=quiet, timeout=limit)):
            raise typer.Exit(status)


app.command("up", hidden=True)(deploy)


@app.command("config")
def config(compose_file: Files) -> None:
    """Show the merged and filled-in document after checking it."""
    import yaml

    from cli.stack.files import load
    from cli.stack.interpolate import escape
    from cli.stack.plan import make

    project = load(compose_file, os.environ, warn)
    make("stack", project)
    print(yaml.safe_dump(escape(dict(project.document)), sort_keys=False, allow_unicode=True), end="")


@app.command("ls")
def list_stacks(form: Format = None, quiet: Quiet = False) -> None:
    """List the stacks."""
    counts: dict[str, int] = {}
    with client() as api:
        for service in api.get("/services", {"filters": filters([], label=_LABEL)}):
            name = (service["Spec"].get("Labels") or {})[_LABEL]
            counts[name] = counts.get(name, 0) + 1
    LISTING.show([{"Name": name, "Services": count} for name, count in sorted(counts.items())], quiet=quiet, form=form)


def _of(stack: str, given: list[str] | None) -> str | None:
    return filters(given, label=f"{_LABEL}={stack}")


@app.command("services")
def services(stack: Stack, given: Filter = None, quiet: Quiet = False, form: Format = None) -> None:
    """List a stack's services."""
    from cli import service as shown

    with client() as api:
        rows = shown.service_rows(api, _of(stack, given))
    if not rows:
        raise NotFound(f"nothing found in stack: {stack}: see `cluster stack ls`")
    shown.LISTING.show(rows, quiet=quiet, form=form)


@app.command("ps")
def tasks(
    stack: Stack,
    given: Filter = None,
    quiet: Quiet = False,
    no_trunc: NoTrunc = False,
    no_resolve: Annotated[bool, typer.Option("--no-resolve", help="Ids of nodes, not names")] = False,
    form: Format = None,
) -> None:
    """List a stack's tasks."""
    from cli import tasks as shown

    with client() as api:
        found: list[Any] = api.get("/tasks", {"filters": _of(stack, given)})
        if not found:
            raise NotFound(f"nothing found in stack: {stack}: see `cluster stack ls`")
        nodes = {} if no_resolve else shown.node_names(api)
        rows = shown.rows(found, shown.service_names(api), nodes, whole=no_trunc or quiet)
    shown.LISTING.show(rows, quiet=quiet, form=form)


@app.command("rm")
def remove(stacks: Annotated[list[str], typer.Argument(show_default=False)]) -> None:
    """Remove stacks: services, networks, secrets and configs; ends when their tasks are gone."""
    from cli.stack import deploy as deployment
    from cli.stack.plan import check_stack_name

    status = 0
    with client() as api:
        for stack in stacks:
            try:
                if not deployment.remove(api, check_stack_name(stack), _say):
                    print(f"Nothing found in stack: {stack}", file=sys.stderr)
            except CoveyError as error:
                print(f"cluster: stack {stack}: {error.message}", file=sys.stderr)
                status = 1
    if status:
        raise typer.Exit(status)
