"""``cluster service``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cli.connection import client, filters
from cli.flags import Filter, Format, NoTrunc, Quiet, References, with_flags
from cli.output import Listing, each, show_objects, warn
from cli.service_flags import CREATE, UPDATE
from cli.service_verbs import register
from cli.waiting import Detach, Quietly, Timeout, Wait
from covey.engine_api.light import Client
from covey.errors import InvalidArgument, NotFound

app = typer.Typer()
register(app)

LISTING = Listing({"ID": "ID", "NAME": "Name", "MODE": "Mode", "REPLICAS": "Replicas", "IMAGE": "Image", "PORTS": "Ports"})
Words = Annotated[list[str] | None, typer.Argument(metavar="[COMMAND] [ARG]...", show_default=False)]


def _warn(answer: Mapping[str, Any] | None) -> None:
    answer = answer or {}
    for text in [*(answer.get("Warnings") or ()), *([answer["Warning"]] if answer.get("Warning") else [])]:
        warn(text)


@app.command("create", context_settings={"allow_interspersed_args": False})
@with_flags(CREATE)
def create(image: str, words: Words = None, **flags: Any) -> None:
    """Make a service: tasks of IMAGE that the cluster keeps running."""
    from cli.service_spec import created

    if flags["plan"]:
        from cli.plan import planning

        with planning(flags["format"]) as rehearsal:
            spec = created(image, words or [], flags)
            _resolve(rehearsal, spec)
            _pin(rehearsal, spec, flags)
            rehearsal.post("/services/create", json=spec)
        return
    _shown_only_as_plan(flags["format"])
    spec = created(image, words or [], flags)
    with client() as api:
        wait = Wait(api, [], **_waiting(flags))
        _resolve(api, spec)
        _pin(api, spec, flags)
        answer = api.post("/services/create", json=spec, headers=_login(spec, flags))
        _warn(answer)
        print(answer["ID"], flush=True)
        wait.end([answer["ID"]])


def _shown_only_as_plan(form: str | None) -> None:
    if form:
        raise InvalidArgument("--format is how a plan is shown: give --plan with it")


def _waiting(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: flags[name] for name in ("detach", "quiet", "timeout")}


def _resolve(api: Client, spec: Mapping[str, Any]) -> None:
    """Ids in place of the names of networks, and beside those of secrets and configs."""
    template = spec.get("TaskTemplate") or {}
    for network in template.get("Networks") or ():
        network["Target"] = _network_id(api, network["Target"])
    container = template.get("ContainerSpec") or {}
    for kind in ("Secret", "Config"):
        for entry in container.get(f"{kind}s") or ():
            if not entry.get(f"{kind}ID"):
                entry[f"{kind}ID"] = _id_of(api, kind.lower(), entry[f"{kind}Name"])


def _network_id(api: Client, reference: str) -> str:
    return str(api.get(f"/networks/{reference}")["Id"])


def _id_of(api: Client, kind: str, name: str) -> str:
    found = [one for one in api.get(f"/{kind}s", {"filters": filters([], name=name)}) if one["Spec"]["Name"] == name]
    if not found:
        raise NotFound(f"{kind} {name} not found: make it first")
    return str(found[0]["ID"])


def service_rows(api: Client, query: str | None) -> list[dict[str, Any]]:
    """Rows of ``service ls``; counts are asked of the daemon, or counted here when it is too old to know."""
    status = api.at_least("1.41")
    found = api.get("/services", {"filters": query, "status": True if status else None})
    counts = None if status else _counts(api)
    return [_row(one, counts) for one in sorted(found, key=lambda one: str(one["Spec"]["Name"]))]


def _counts(api: Client) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for task in api.get("/tasks", {"filters": filters(["desired-state=running"])}):
        one = counts.setdefault(task["ServiceID"], {"RunningTasks": 0, "DesiredTasks": 0})
        one["DesiredTasks"] += 1
        one["RunningTasks"] += task["Status"]["State"] == "running"
    return counts


def _row(one: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]] | None) -> dict[str, Any]:
    from cli.tasks import ports_text

    spec = one["Spec"]
    mode = spec.get("Mode") or {}
    name = next((word for key, word in _MODES.items() if key in mode), "replicated")
    status = (one.get("ServiceStatus") if counts is None else counts.get(one["ID"])) or {}
    wanted = status.get("DesiredTasks", 0)
    if "Replicated" in mode and counts is not None:
        wanted = (mode["Replicated"] or {}).get("Replicas", 1)
    most = ((spec.get("TaskTemplate") or {}).get("Placement") or {}).get("MaxReplicas")
    beside = f" (max {most} per node)" if most else ""
    if name.endswith("job"):
        done = status.get("CompletedTasks", 0)
        total = mode["ReplicatedJob"]["TotalCompletions"] if "ReplicatedJob" in mode else wanted + done
        beside = f" ({done}/{total} completed)"
    container = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
    return {
        "ID": one["ID"][:12],
        "Name": spec["Name"],
        "Mode": name,
        "Replicas": f"{status.get('RunningTasks', 0)}/{wanted}{beside}",
        "Image": str(container.get("Image") or "").partition("@")[0],
        "Ports": ports_text((one.get("Endpoint") or {}).get("Ports") or []),
    }


_MODES = {"Global": "global", "ReplicatedJob": "replicated job", "GlobalJob": "global job", "Replicated": "replicated"}


@app.command("ls")
def list_services(given: Filter = None, quiet: Quiet = False, form: Format = None) -> None:
    """List the services."""
    with client() as api:
        rows = service_rows(api, filters(given))
    LISTING.show(rows, quiet=quiet, form=form)


@app.command("ps")
def tasks(
    services: References,
    given: Filter = None,
    quiet: Quiet = False,
    no_trunc: NoTrunc = False,
    no_resolve: Annotated[bool, typer.Option("--no-resolve", help="Ids of nodes, not names")] = False,
    form: Format = None,
) -> None:
    """List the tasks of services, with their history."""
    from cli import tasks as shown

    with client() as api:
        named = {found["ID"]: found["Spec"]["Name"] for found in (api.get(f"/services/{name}") for name in services)}
        found = [task for one in named for task in api.get("/tasks", {"filters": filters(given, service=one)})]
        rows = shown.rows(found, named, {} if no_resolve else shown.node_names(api), whole=no_trunc or quiet)
    shown.LISTING.show(rows, quiet=quiet, form=form)


@app.command("inspect")
def inspect(
    services: References,
    form: Format = None,
    pretty: Annotated[bool, typer.Option("--pretty", help="For people")] = False,
) -> None:
    """Show all about services."""
    with client() as api:
        found = [api.get(f"/services/{name}", {"insertDefaults": True}) for name in services]
    if pretty:
        from cli.service_pretty import pretty_text

        print("\n\n".join(pretty_text(one) for one in found))
        return
    show_objects(found, form)


@app.command("update")
@with_flags(UPDATE)
def update(service: str, **flags: Any) -> None:
    """Change a service; its tasks are replaced as far as the change needs it."""
    if flags["plan"]:
        from cli.plan import planning

        with planning(flags["format"]) as rehearsal:
            found = rehearsal.get(f"/services/{service}")
            spec = _previous(found) if flags["rollback"] else _changed(rehearsal, found, flags)
            _put(rehearsal, found, spec)
        return
    _shown_only_as_plan(flags["format"])
    if flags["rollback"]:
        _rollback(service, **_waiting(flags))
        return
    with client() as api:
        found = api.get(f"/services/{service}")
        spec = _changed(api, found, flags)
        wait = Wait(api, [found["ID"]], **_waiting(flags))
        _put(api, found, spec, _login(spec, flags))
        print(service, flush=True)
        wait.end([found["ID"]])


def _changed(api: Client, found: Mapping[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The spec of a service with the changes that ``flags`` ask for."""
    from cli.service_spec import updated

    if flags["network_rm"]:
        flags["network_rm"] = [*flags["network_rm"], *(_network_id(api, name) for name in flags["network_rm"])]
    spec = updated(found["Spec"], flags)
    _resolve(api, spec)
    if flags["image"]:
        _pin(api, spec, flags)
    return spec


def _pin(api: Client, spec: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """Hold the service to what its image's name means now, unless that is not wanted."""
    if flags["no_resolve_image"]:
        return
    from cli.service_image import pin

    pin(api, spec)


def _login(spec: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, str]:
    """What is sent along for the nodes to pull the image with."""
    if not flags["with_registry_auth"]:
        return {}
    from cli.registry import image_login

    return image_login(spec)


def _put(
    api: Client, found: Mapping[str, Any], spec: Mapping[str, Any], headers: Mapping[str, str] | None = None, **query: str
) -> None:
    """Update a service from the version it was read at."""
    asked = {"version": found["Version"]["Index"], **query}
    _warn(api.post(f"/services/{found['ID']}/update", asked, spec, headers=headers))


def _rollback(service: str, detach: bool, quiet: bool, timeout: str | None, to: int = 0) -> None:
    with client() as api:
        found = api.get(f"/services/{service}")
        if not to:
            _previous(found)
        wait = Wait(api, [found["ID"]], detach=detach, quiet=quiet, timeout=timeout, rollback=True)
        _put(api, found, found["Spec"], None, rollback="previous", **({"to": str(to)} if to else {}))
        print(service, flush=True)
        wait.end([found["ID"]])


def _previous(found: Mapping[str, Any]) -> dict[str, Any]:
    if not found.get("PreviousSpec"):
        raise InvalidArgument(f"service {found['Spec']['Name']} has no previous spec: there was no update to take back")
    return dict(found["PreviousSpec"])


@app.command("rollback")
def rollback(
    service: str,
    to: Annotated[int, typer.Option("--to", help="A version of `service history`", show_default=False)] = 0,
    detach: Detach = False,
    quiet: Quietly = False,
    timeout: Timeout = None,
) -> None:
    """Take back a service's last update, or all since a version."""
    _rollback(service, detach, quiet, timeout, to)


@app.command("scale")
def scale(
    sizes: Annotated[list[str], typer.Argument(metavar="SERVICE=REPLICAS...", show_default=False)],
    detach: Detach = False,
    timeout: Timeout = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what would happen: status 0 nothing, 1 changes, 255 error")
    ] = False,
    form: Annotated[str | None, typer.Option("--format", help="How a plan is shown: json", show_default=False)] = None,
) -> None:
    """Set how many tasks services have."""
    if plan:
        from cli.plan import planning

        with planning(form) as rehearsal:
            for service in _scaled(rehearsal, _sizes(sizes)).values():
                _put(rehearsal, service, service["Spec"])
        return
    _shown_only_as_plan(form)
    wanted = _sizes(sizes)
    with client() as api:
        found = _scaled(api, wanted)
        ids = [service["ID"] for service in found.values()]
        wait = Wait(api, ids, detach=detach, timeout=timeout)
        for name, service in found.items():
            _put(api, service, service["Spec"])
            print(f"{name} scaled to {wanted[name]}", flush=True)
        wait.end(ids)


def _sizes(texts: list[str]) -> dict[str, int]:
    """Service → number of replicas."""
    from cli.service_spec import replica_count

    wanted: dict[str, int] = {}
    for text in texts:
        name, equals, count = text.rpartition("=")
        if not equals or not name:
            raise InvalidArgument(f"{text!r} is not of the form SERVICE=REPLICAS")
        wanted[name] = replica_count(count, text)
    return wanted


def _scaled(api: Client, wanted: Mapping[str, int]) -> dict[str, Any]:
    """Services by the names they were called by, their specs with other numbers of replicas."""
    from cli.service_spec import set_replicas

    found = {name: api.get(f"/services/{name}") for name in wanted}
    for name, service in found.items():
        set_replicas(service["Spec"], wanted[name])
    return found


@app.command("rm")
def remove(services: References) -> None:
    """Remove services."""
    with client() as api:
        if status := each(services, lambda name: api.delete(f"/services/{name}")):
            raise typer.Exit(status)


@app.command("logs")
def logs(
    reference: Annotated[str, typer.Argument(metavar="SERVICE|TASK", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as output comes")] = False,
    tail: Annotated[str, typer.Option("--tail", "-n", help="How many lines from the end")] = "all",
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t")] = False,
    since: Annotated[str | None, typer.Option(help="10m, or a time", show_default=False)] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Without the tasks' names")] = False,
    no_trunc: NoTrunc = False,
    no_resolve: Annotated[bool, typer.Option("--no-resolve", help="Ids, not names")] = False,
    no_task_ids: Annotated[bool, typer.Option("--no-task-ids")] = False,
) -> None:
    """Show the output of a service's tasks, or of one task."""
    from cli.moments import timestamp
    from cli.service_logs import Options, show

    query = {
        "stdout": True,
        "stderr": True,
        "follow": follow or None,
        "tail": tail,
        "timestamps": timestamps or None,
        "since": timestamp(since),
        "details": None if raw else True,
    }
    with client() as api:
        show(api, reference, query, Options(raw=raw, whole=no_trunc, resolve=not no_resolve, task_ids=not no_task_ids))
