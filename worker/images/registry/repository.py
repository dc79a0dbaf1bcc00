"""One repository of a registry: the calls of the distribution spec for pull and push.

Each call is one exchange that either did what it says or raised; what belongs together, and in which order, is
worker.images.pull's and push's. Nothing here touches a disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit

import aiohttp
from yarl import URL

from worker.images import manifests, reference
from worker.images.manifests import Descriptor
from worker.images.registry.auth import Scopes, scope
from worker.images.registry.connection import Connection, read_all
from worker.images.registry.errors import RegistryError, Unsound
from worker.images.sources import Sink

_ACCEPT = ", ".join(manifests.ACCEPTED)
TAGS_LIMIT = 100_000
PAGES_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest as the registry handed it over; its digest is the content's."""

    digest: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload under way: where it goes on, and how many bytes the registry has."""

    location: str
    offset: int = 0


class Repository:
    """``path`` at the endpoint of ``connection``. ``scopes``: what tokens are asked to allow."""

    def __init__(self, connection: Connection, path: str, *, pushing: bool = False, also_from: Sequence[str] = ()) -> None:
        self.connection, self.path = connection, path
        actions = ("pull", "push") if pushing else ("pull",)
        self._scopes: Scopes = frozenset({scope(path, *actions), *(scope(other, "pull") for other in also_from)})

    async def manifest(self, name: str) -> Found:
        """The manifest that a tag or digest names. Unsound when it is not what its digest says."""

        async def once() -> Found:
            url = f"/v2/{self.path}/manifests/{quote(name, safe=':')}"
            async with self.connection.request("GET", url, scopes=self._scopes, headers={"Accept": _ACCEPT}) as answer:
                _refuse_encoding(answer, url)
                data = await read_all(answer, manifests.SIZE_LIMIT, f"manifest {self.path}:{name}")
                return _manifest(data, answer, name)

        return await self.connection.retried(once)

    async def manifest_descriptor(self, name: str) -> Descriptor:
        """Digest, media type and size of a manifest by HEAD, or by GET where the registry's HEAD does not tell."""

        async def once() -> Descriptor | None:
            url = f"/v2/{self.path}/manifests/{quote(name, safe=':')}"
            async with self.connection.request("HEAD", url, scopes=self._scopes, headers={"Accept": _ACCEPT}) as answer:
                digest, size = answer.headers.get("Docker-Content-Digest", ""), answer.content_length
                if not digest or not size:
                    return None
                _check_named(name, reference.check_digest(digest))
                return Descriptor(answer.headers.get("Content-Type", ""), digest, size)

        described = await self.connection.retried(once)
        if described is None:
            found = await self.manifest(name)
            described = Descriptor(found.media_type, found.digest, len(found.data))
        return described

    async def blob(self, descriptor: Descriptor, sink: Sink) -> None:
        """The blob from ``sink.offset`` on, asked for again where the line was cut. Unsound when the length is wrong."""
        attempt = 1
        while True:
            before = sink.offset
            try:
                return await self._blob_once(descriptor, sink)
            except RegistryError as error:
                if sink.offset > before:
                    attempt = 1
                if not self.connection.worthwhile(error, attempt):
                    raise
                await self.connection.pause(attempt, error)
            attempt += 1

    async def _blob_once(self, descriptor: Descriptor, sink: Sink) -> None:
        url = f"/v2/{self.path}/blobs/{descriptor.digest}"
        offset, size = sink.offset, descriptor.size
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self.connection.request("GET", url, scopes=self._scopes, headers=headers, ok=(200, 206)) as answer:
            _refuse_encoding(answer, url)
            start = _start(answer, offset)
            announced = answer.content_length
            if announced is not None and start + announced != size:
                raise Unsound(
                    f"blob {descriptor.digest} has {start + announced} bytes at the registry, not {size} as its manifest says"
                )
            # A registry that knows no ranges begins anew: what is here already is read over.
            passed = offset - start
            async for chunk in answer.content.iter_any():
                skipped = min(passed, len(chunk))
                passed -= skipped
                if skipped < len(chunk):
                    await sink.write(chunk[skipped:] if skipped else chunk)
            if sink.offset < size:
                raise aiohttp.ClientPayloadError(f"{sink.offset} of {size} bytes")

    async def has_blob(self, digest: str) -> int | None:
        """The blob's size at the registry, None when it is not there."""

        async def once() -> int | None:
            url = f"/v2/{self.path}/blobs/{digest}"
            async with self.connection.request("HEAD", url, scopes=self._scopes, ok=(200, 404)) as answer:
                return (answer.content_length or 0) if answer.status == 200 else None

        return await self.connection.retried(once)

    async def tags(self) -> list[str]:
        """All tags of the repository, page after page."""
        found: list[str] = []
        url = f"/v2/{self.path}/tags/list"
        for _ in range(PAGES_LIMIT):
            document, following = await self._page(url)
            tags = document.get("tags") or []
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise Unsound(f"{self.path}: the registry's list of tags is malformed")
            found += tags
            if following is None or len(found) > TAGS_LIMIT:
                return found[:TAGS_LIMIT]
            url = following
        raise Unsound(f"{self.path}: the registry's list of tags does not end")

    async def referrers(self, digest: str, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """What is attached to manifest ``digest`` (signatures, lists of contents); nothing where the registry knows none."""
        query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        url = f"/v2/{self.path}/referrers/{digest}{query}"

        async def once() -> bytes | None:
            async with self.connection.request("GET", url, scopes=self._scopes, ok=(200, 404)) as answer:
                if answer.status == 404:
                    return None
                return await read_all(answer, manifests.SIZE_LIMIT, f"referrers of {digest}")

        data = await self.connection.retried(once)
        if data is None:
            return ()
        index = manifests.parse(data, manifests.OCI_INDEX)
        found = index.manifests if isinstance(index, manifests.Index) else ()
        return tuple(one for one in found if not artifact_type or one.artifact_type == artifact_type)

    async def mount(self, digest: str, source: str) -> Upload | None:
        """Has the blob of repository ``source`` here, too: None when it is; else the upload begun in its place."""
        query = urlencode({"mount": digest, "from": source})
        return await self._begin(f"?{query}")

    async def begin_upload(self) -> Upload:
        """A new upload."""
        begun = await self._begin("")
        if begun is None:
            raise Unsound(f"{self.path}: the registry says that a blob is there which nobody named")
        return begun

    async def _begin(self, query: str) -> Upload | None:
        async def once() -> Upload | None:
            url = f"/v2/{self.path}/blobs/uploads/{query}"
            headers = {"Content-Length": "0"}
            async with self.connection.request("POST", url, scopes=self._scopes, headers=headers, ok=(201, 202)) as answer:
                return None if answer.status == 201 else Upload(self._location(answer))

        return await self.connection.retried(once)

    async def append(self, upload: Upload, size: int, body: Callable[[], AsyncIterator[bytes]]) -> Upload:
        """Sends the next ``size`` bytes as a chunk of their own."""
        end = upload.offset + size - 1
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "Content-Range": f"{upload.offset}-{end}",
        }
        request = self.connection.request("PATCH", upload.location, scopes=self._scopes, headers=headers, body=body, ok=(202,))
        async with request as answer:
            return Upload(self._location(answer), upload.offset + size)

    async def finish(
        self, upload: Upload, digest: str, size: int = 0, body: Callable[[], AsyncIterator[bytes]] | None = None
    ) -> None:
        """Ends an upload with its last ``size`` bytes: the blob is ``digest``, or the registry refuses it."""
        parts = urlsplit(upload.location)
        query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), ("digest", digest)])
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        request = self.connection.request(
            "PUT", parts._replace(query=query).geturl(), scopes=self._scopes, headers=headers, body=body, ok=(201, 204)
        )
        async with request:
            pass

    async def upload_status(self, upload: Upload) -> Upload | None:
        """How far the registry has come with an upload whose line was cut; None when it has forgotten it."""
        async with self.connection.request("GET", upload.location, scopes=self._scopes, ok=(204, 404)) as answer:
            if answer.status == 404:
                return None
            last = answer.headers.get("Range", "").rpartition("-")[2]
            offset = int(last) + 1 if last.isdigit() and len(last) < 19 else 0
            # "0-0" is what registries say of an upload that has nothing yet, and of one that has a byte: begin anew.
            return Upload(self._location(answer, upload.location), offset if offset > 1 else 0)

    async def put_manifest(self, name: str, data: bytes, media_type: str) -> str:
        """Stores a manifest under a tag or digest; the digest. Unsound when the registry takes it for another one."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()

        async def once() -> str:
            url = f"/v2/{self.path}/manifests/{quote(name, safe=':')}"
            request = self.connection.request(
                "PUT", url, scopes=self._scopes, headers={"Content-Type": media_type}, body=lambda: data, ok=(200, 201, 202)
            )
            async with request as answer:
                theirs = answer.headers.get("Docker-Content-Digest")
            if theirs and theirs != digest:
                raise Unsound(f"the registry took manifest {digest} for {theirs}")
            return digest

        return await self.connection.retried(once)

    async def _page(self, url: str) -> tuple[dict[str, Any], str | None]:
        async def once() -> tuple[dict[str, Any], str | None]:
            async with self.connection.request("GET", url, scopes=self._scopes) as answer:
                data = await read_all(answer, manifests.SIZE_LIMIT, f"list of tags of {self.path}")
                link = answer.links.get("next")
                # Wherever it points, the next page is the same registry's.
                following = URL(str(link["url"])).raw_path_qs if link is not None and "url" in link else None
            return manifests.load(data, f"list of tags of {self.path}"), following

        return await self.connection.retried(once)

    def _location(self, answer: aiohttp.ClientResponse, known: str | None = None) -> str:
        location = answer.headers.get("Location") or known
        if not location:
            raise Unsound(f"{self.path}: the registry does not say where an upload goes on")
        found = urljoin(str(answer.url), location)
        parts, own = urlsplit(found), urlsplit(self.connection.endpoint.base)
        if own.scheme == "https" and parts.scheme == "http" and parts.hostname == own.hostname:
            # A registry behind a proxy that ends TLS does not always know how it was reached.
            return parts._replace(scheme=own.scheme, netloc=own.netloc).geturl()
        return found


def _manifest(data: bytes, answer: aiohttp.ClientResponse, name: str) -> Found:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    claimed = name if ":" in name else answer.headers.get("Docker-Content-Digest") or digest
    if claimed.startswith("sha256:") and claimed != digest:
        raise Unsound(f"manifest {name} has digest {digest}, not {claimed} as announced: it was damaged on the way")
    return Found(digest, answer.headers.get("Content-Type", ""), data)


def _check_named(name: str, digest: str) -> None:
    if ":" in name and digest != name:
        raise Unsound(f"asked for manifest {name} the registry announces {digest}")


def _refuse_encoding(answer: aiohttp.ClientResponse, what: str) -> None:
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", ""):
        raise Unsound(f"{what}: the registry packed its answer as {encoding!r:.30}, which nobody asked for")


def _start(answer: aiohttp.ClientResponse, asked: int) -> int:
    """Where the answer's bytes begin. Unsound when it is not where they were asked for, nor the beginning."""
    if answer.status == 200:
        return 0
    unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not first.isdigit() or int(first[:19]) != asked:
        raise Unsound(f"asked for bytes from {asked} on, the registry answers with {answer.headers.get('Content-Range')!r:.60}")
    return asked
