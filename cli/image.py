"""``cluster image``: this node's images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO

import typer

from cli import image_cluster
from cli.connection import client, filters
from cli.flags import Filter, Format, NoTrunc, Quiet, References
from cli.image_care import fsck, pin, unpin
from cli.output import Listing, clean, labels_text, short_id, show_objects, since, size
from covey.engine_api.light import Client
from covey.errors import CoveyError, Internal, InvalidArgument

app = typer.Typer()
app.command("distribute")(image_cluster.distribute)

_COLUMNS = {"REPOSITORY": "Repository", "TAG": "Tag", "IMAGE ID": "ID", "CREATED": "CreatedSince", "SIZE": "Size"}
LISTING = Listing(_COLUMNS)
LISTING_OF_NODES = Listing({"NODE": "Node", **_COLUMNS})
_PIECE = 256 * 1024

for _command in (fsck, pin, unpin):
    app.command()(_command)


@app.command("ls")
def list_images(
    repository: Annotated[str | None, typer.Argument(show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", "-a")] = False,
    given: Filter = None,
    quiet: Quiet = False,
    no_trunc: NoTrunc = False,
    form: Format = None,
    all_nodes: image_cluster.AllNodes = False,
) -> None:
    """List the images."""
    chosen = filters([*(given or ()), *([f"reference={repository}"] if repository else [])])
    query = {"all": everything or None, "filters": chosen}
    with client() as api:
        if all_nodes:
            nodes = image_cluster.images_everywhere(api, query)
            rows = [{"Node": node, **row} for node, found in nodes for row in _all_rows(found, no_trunc)]
        else:
            rows = list(_all_rows(api.get("/images/json", query), no_trunc))
    if quiet:
        rows = list({row["ID"]: row for row in rows}.values())
    (LISTING_OF_NODES if all_nodes else LISTING).show(rows, quiet=quiet, form=form)


def _all_rows(found: list[dict[str, Any]], whole: bool) -> Iterator[dict[str, Any]]:
    for one in sorted(found, key=lambda one: -int(one.get("Created") or 0)):
        yield from _rows(one, whole)


def _rows(one: dict[str, Any], whole: bool) -> Iterator[dict[str, Any]]:
    for name in one.get("RepoTags") or ["<none>:<none>"]:
        repository, _, tag = name.rpartition(":")
        yield {
            "ID": short_id(one["Id"], whole),
            "Repository": repository,
            "Tag": tag,
            "CreatedSince": since(one.get("Created")),
            "CreatedAt": one.get("Created"),
            "Size": size(one.get("Size") or 0),
            "Labels": labels_text(one.get("Labels")),
        }


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _open(path: str) -> BinaryIO:
    if path == "-":
        if sys.stdin.isatty():
            raise InvalidArgument("no archive on stdin: name a file, or redirect one")
        return sys.stdin.buffer
    try:
        return open(path, "rb")
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from None


def _progress(lines: Iterator[Any], quiet: bool = False) -> str:
    """Print a progress stream, one line a message; its last message. An error in it is raised."""
    last = ""
    for line in lines:
        if line.get("error"):
            raise Internal(str((line.get("errorDetail") or {}).get("message") or line["error"]))
        text = str(line.get("stream") or line.get("status") or "").strip()
        if text:
            last = text
            if not quiet:
                print(clean(f"{line['id']}: {text}" if line.get("id") else text), flush=True)
    return last


@app.command("import")
def import_image(
    source: Annotated[str, typer.Argument(metavar="FILE|-", show_default=False)],
    reference: Annotated[str, typer.Argument(metavar="[NAME[:TAG]]", show_default=False)] = "",
    change: Annotated[
        list[str] | None, typer.Option("--change", "-c", help="A Dockerfile instruction", show_default=False)
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", show_default=False)] = None,
    platform: Annotated[str | None, typer.Option(show_default=False)] = None,
) -> None:
    """Make an image of a root file system's tar archive."""
    repository, tag = _split(reference)
    query = {
        "fromSrc": "-",
        "repo": repository or None,
        "tag": tag or None,
        "changes": change or None,
        "message": message,
        "platform": platform,
    }
    with _open(source) as file, client() as api:
        _progress(api.lines("POST", "/images/create", query, body=_pieces(file)))


def _split(reference: str) -> tuple[str, str]:
    """(name, tag) of a reference; a colon before a slash belongs to a registry's port."""
    name, colon, tag = reference.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (reference, "")


@app.command("pull")
def pull(
    image: Annotated[str, typer.Argument(metavar="NAME[:TAG|@DIGEST]", show_default=False)],
    all_tags: Annotated[bool, typer.Option("--all-tags", "-a", help="Every tag of the repository")] = False,
    quiet: Quiet = False,
    platform: Annotated[str | None, typer.Option(help="os[/arch[/variant]]", show_default=False)] = None,
) -> None:
    """Get an image from a registry."""
    with client() as api:
        fetch(api, image, platform=platform, quiet=quiet, all_tags=all_tags)
    if quiet:
        print(image)


def fetch(api: Client, image: str, *, platform: str | None = None, quiet: bool = False, all_tags: bool = False) -> None:
    """Pull ``image`` as the one logged in to its registry, and show the way there."""
    from cli.registry import auth_header
    from cli.transfer import show

    name, tag = (image, "") if "@" in image else _split(image)
    if all_tags and tag:
        raise InvalidArgument("a tag cannot be used with --all-tags/-a")
    tag = tag if tag or all_tags or "@" in image else "latest"
    query = {"fromImage": name, "tag": tag, "platform": platform}
    show(api.lines("POST", "/images/create", query, headers=auth_header(image)), quiet)


@app.command("push")
def push(
    image: Annotated[str, typer.Argument(metavar="NAME[:TAG]", show_default=False)],
    all_tags: Annotated[bool, typer.Option("--all-tags", "-a", help="Every tag of the repository")] = False,
    quiet: Quiet = False,
) -> None:
    """Send an image to the registry its name begins with."""
    from cli.registry import auth_header
    from cli.transfer import show

    name, tag = _split(image)
    if all_tags and tag:
        raise InvalidArgument("a tag cannot be used with --all-tags/-a")
    query = {"tag": tag or (None if all_tags else "latest")}
    with client() as api:
        show(api.lines("POST", f"/images/{name}/push", query, headers=auth_header(image)), quiet)
    if quiet:
        print(image)


FINDINGS = Listing({"NAME": "Name", "DESCRIPTION": "Description", "STARS": "StarCount", "OFFICIAL": "IsOfficial"}, quiet="Name")


@app.command("search")
def search(
    term: Annotated[str, typer.Argument(metavar="[REGISTRY/]WORD", show_default=False)],
    limit: Annotated[int | None, typer.Option(show_default=False)] = None,
    given: Filter = None,
    no_trunc: NoTrunc = False,
    form: Format = None,
) -> None:
    """Look for images at a registry that can be searched; Docker Hub unless one is named."""
    from cli.output import clipped

    with client() as api:
        found = api.get("/images/search", {"term": term, "limit": limit, "filters": filters(given)})
    rows = [
        {
            "Name": one["name"],
            "Description": one["description"] if no_trunc else clipped(one["description"], 45),
            "StarCount": one["star_count"],
            "IsOfficial": "[OK]" if one.get("is_official") else "",
        }
        for one in sorted(found, key=lambda one: -int(one["star_count"]))
    ]
    FINDINGS.show(rows, form=form)


@app.command("load")
def load(
    file: Annotated[str, typer.Argument(metavar="[FILE]", show_default=False)] = "",
    source: Annotated[str, typer.Option("--input", "-i", help="A docker-archive; - is stdin")] = "-",
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
    all_nodes: image_cluster.AllNodes = False,
) -> None:
    """Load images of an archive as `docker save` writes it."""
    names: list[str] = []
    with _open(file or source) as archive, client() as api:
        lines = api.lines("POST", "/images/load", {"quiet": True}, body=_pieces(archive))
        _progress(image_cluster.noted(lines, names), quiet)
        if all_nodes:
            image_cluster.distribute_loaded(api, names, quiet)


@app.command("save")
def save(
    images: References,
    output: Annotated[str, typer.Option("--output", "-o", help="A file; - is stdout")] = "-",
) -> None:
    """Write images as an archive that `load` reads."""
    from cli.streams import write

    if output == "-" and sys.stdout.isatty():
        raise InvalidArgument("an archive is nothing for a terminal: use --output FILE, or redirect")
    with client() as api, api.stream("GET", "/images/get", {"names": images}) as response:
        if output == "-":
            for piece in response:
                write(1, piece)
            return
        with open(output, "wb") as file:
            for piece in response:
                file.write(piece)


@app.command("inspect")
def inspect(images: References, form: Format = None) -> None:
    """Show all about images."""
    with client() as api:
        show_objects([api.get(f"/images/{name}/json") for name in images], form)


@app.command("history")
def history(image: str, no_trunc: NoTrunc = False, form: Format = None) -> None:
    """Show how an image came about."""
    with client() as api:
        found = api.get(f"/images/{image}/history")
    listing = Listing(
        {"IMAGE": "ID", "CREATED": "CreatedSince", "CREATED BY": "CreatedBy", "SIZE": "Size", "COMMENT": "Comment"}
    )
    from cli.output import clipped

    rows = [
        {
            "ID": short_id(one["Id"], no_trunc),
            "CreatedSince": since(one.get("Created")),
            "CreatedBy": one.get("CreatedBy", "") if no_trunc else clipped(one.get("CreatedBy", ""), 45),
            "Size": size(one.get("Size") or 0),
            "Comment": one.get("Comment", ""),
        }
        for one in found
    ]
    listing.show(rows, form=form)


@app.command("tag")
def tag(source: str, target: str) -> None:
    """Give an image a further name."""
    name, word = _split(target)
    with client() as api:
        api.post(f"/images/{source}/tag", {"repo": name, "tag": word or "latest"})


@app.command("rm")
def remove(images: References, force: Annotated[bool, typer.Option("--force", "-f")] = False) -> None:
    """Remove images, or names of theirs."""
    status = 0
    with client() as api:
        for name in images:
            try:
                for line in api.delete(f"/images/{name}", {"force": force or None}) or ():
                    for verb, what in line.items():
                        print(f"{verb}: {what}")
            except CoveyError as error:
                print(f"cluster: {error.message}", file=sys.stderr)
                status = 1
    if status:
        raise typer.Exit(status)


@app.command("prune")
def prune(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Named ones that no container uses too")] = False,
    # Docker's -f is --force here.
    given: Annotated[list[str] | None, typer.Option("--filter", help="until=TIME, label=KEY[=VALUE], label!=…")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Accepted")] = False,
    all_nodes: image_cluster.AllNodes = False,
) -> None:
    """Remove images that have no name, or that no container uses."""
    query = {"filters": filters([*(given or ()), *(["dangling=false"] if everything else [])])}
    with client() as api:
        if all_nodes:
            raise typer.Exit(image_cluster.prune_everywhere(api, query))
        done = api.post("/images/prune", query)
    for line in done.get("ImagesDeleted") or ():
        for verb, what in line.items():
            print(f"{verb}: {what}")
    print(f"Total reclaimed space: {size(done.get('SpaceReclaimed') or 0)}")
