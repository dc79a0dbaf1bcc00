"""This node's images as a registry: the OCI distribution spec over the image store, so that others can pull and push.

It decides what a request means and how a refusal is said (the spec's codes). A repository ``app`` is the image ``app`` of this
node, so what is pushed here runs in the cluster by that name. Of an index it keeps the image for this node's platform. Who may
connect is the listener's affair: loopback only. Facts: opencontainers/distribution-spec, spec.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from aiohttp import web

from covey.errors import CoveyError, InvalidArgument, NotFound
from worker.blobs.upload import Uploads
from worker.images import manifests, platforms, reference
from worker.images.content import BadDigest, Blob, Lease
from worker.images.image import Image, host_architecture
from worker.images.manifests import BadManifest, Index, Manifest
from worker.images.platforms import Platform
from worker.images.reference import Reference
from worker.images.store import ImageStore
from worker.registry.pending import Pending, Upload

log = logging.getLogger(__name__)

PIECE = 1 << 20
VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"

_NAME = r"/v2/(?P<name>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
_DIGEST = r"(?P<digest>sha256:[0-9a-f]{64})"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"

Answer = Awaitable[web.StreamResponse]


class Refusal(Exception):
    """What the spec has a code for."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Row(NamedTuple):
    methods: tuple[str, ...]
    path: re.Pattern[str]
    answer: Callable[[web.BaseRequest, dict[str, str]], Answer]


class Registry:
    """Answers requests; ``stored(name, image)`` is told of images that were pushed."""

    def __init__(
        self, images: ImageStore, uploads: Uploads, pending: Pending, stored: Callable[[Reference, Image], None]
    ) -> None:
        self._images = images
        self._uploads = uploads
        self._pending = pending
        self._stored = stored
        self._rows = tuple(
            _Row(methods, re.compile(path), answer)
            for methods, path, answer in (
                (("GET", "HEAD"), r"/v2/?", self._base),
                (("GET",), r"/v2/_catalog", self._catalog),
                (("GET",), rf"{_NAME}/tags/list", self._tags),
                (("GET",), rf"{_NAME}/referrers/{_DIGEST}", self._referrers),
                (("GET", "HEAD"), rf"{_NAME}/manifests/(?P<reference>sha256:[0-9a-f]{{64}}|{_TAG})", self._manifest),
                (("PUT",), rf"{_NAME}/manifests/(?P<reference>sha256:[0-9a-f]{{64}}|{_TAG})", self._put_manifest),
                (("GET", "HEAD"), rf"{_NAME}/blobs/{_DIGEST}", self._blob),
                (("POST",), rf"{_NAME}/blobs/uploads/?", self._begin),
                (("GET",), rf"{_NAME}/blobs/uploads/(?P<upload>[0-9a-f]{{32}})", self._progress),
                (("PATCH",), rf"{_NAME}/blobs/uploads/(?P<upload>[0-9a-f]{{32}})", self._add),
                (("PUT",), rf"{_NAME}/blobs/uploads/(?P<upload>[0-9a-f]{{32}})", self._finish),
                (("DELETE",), rf"{_NAME}/blobs/uploads/(?P<upload>[0-9a-f]{{32}})", self._cancel),
            )
        )

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, to the end of its answer."""
        try:
            return await self._answer(request)
        except Refusal as refusal:
            return _refused(refusal.status, refusal.code, str(refusal))
        except BadDigest as error:
            return _refused(400, "DIGEST_INVALID", error.message)
        except NotFound as error:
            return _refused(404, "BLOB_UPLOAD_UNKNOWN", error.message)
        except CoveyError as error:
            return _refused(error.status, "DENIED" if error.status == 403 else "UNKNOWN", error.message)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        fitting = [(row, match) for row in self._rows if (match := row.path.fullmatch(request.path))]
        if not fitting:
            raise Refusal(404, "NAME_INVALID", f"{request.path} is nothing a registry has")
        for row, match in fitting:
            if request.method in row.methods:
                return await row.answer(request, match.groupdict())
        raise Refusal(405, "UNSUPPORTED", f"{request.method} is not done here: remove images with `cluster image rm`")

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _base(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        return _json({})

    async def _catalog(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        names = sorted({name.familiar_name for name in await self._names()})
        return _json({"repositories": _page(names, request)})

    async def _tags(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        wanted = reference.parse(found["name"])
        tags = sorted(name.tag for name in await self._names() if name.name == wanted.name and name.tag)
        if not tags:
            raise Refusal(404, "NAME_UNKNOWN", f"there is no repository {found['name']} on this node")
        return _json({"name": found["name"], "tags": _page(tags, request)})

    async def _referrers(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        return _json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}, content_type=INDEX_TYPE)

    async def _manifest(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        image = await self._find(found["name"], found["reference"])
        body: bytes = await _run(self._images.content.read, image.manifest_digest, manifests.SIZE_LIMIT)
        headers = {**VERSION, "Docker-Content-Digest": image.manifest_digest, "Content-Type": image.manifest_type}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(body))})
        return web.Response(body=body, headers=headers)

    async def _blob(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        digest = found["digest"]
        offset = _offset(request)
        try:
            upload = await self._uploads.open(digest, offset)
        except NotFound:
            raise Refusal(404, "BLOB_UNKNOWN", f"there is no blob {digest} on this node") from None
        except InvalidArgument as error:
            raise Refusal(416, "RANGE_INVALID", error.message) from None
        try:
            headers = {
                **VERSION,
                "Docker-Content-Digest": digest,
                "Content-Type": "application/octet-stream",
                "Content-Length": str(upload.size - offset),
                "Accept-Ranges": "bytes",
            }
            if offset:
                headers["Content-Range"] = f"bytes {offset}-{upload.size - 1}/{upload.size}"
            response = web.StreamResponse(status=206 if offset else 200, headers=headers)
            await response.prepare(request)
            if request.method == "GET":
                async for piece in upload.pieces:
                    await response.write(piece)
            return response
        finally:
            await upload.pieces.aclose()

    async def _names(self) -> set[Reference]:
        return set(_tagged(await _run(self._images.list)))

    async def _find(self, repository: str, wanted: str) -> Image:
        """An image by tag, or any image of this node by its manifest's digest. Raises Refusal."""
        unknown = Refusal(404, "MANIFEST_UNKNOWN", f"there is no image {repository} with {wanted} on this node")
        if wanted.startswith("sha256:"):
            images: list[Image] = await _run(self._images.list)
            for image in images:
                if image.manifest_digest == wanted:
                    return image
            raise unknown
        try:
            found: Image = await _run(self._images.resolve, f"{repository}:{wanted}")
        except (NotFound, InvalidArgument):
            raise unknown from None
        return found

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _begin(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        query = request.rel_url.query
        mounted = query.get("mount", "")
        if mounted and re.fullmatch(_DIGEST, mounted) and await _run(self._pending.keep, mounted):
            return _blob_created(found["name"], mounted)
        upload = self._pending.begin()
        if digest := query.get("digest"):
            return await self._take_whole(request, found["name"], upload, digest)
        return _under_way(found["name"], upload, 202)

    async def _progress(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        return _under_way(found["name"], self._pending.find(found["upload"]), 204)

    async def _add(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        upload = self._pending.find(found["upload"])
        given = request.headers.get("Content-Range", "")
        if given and given.removeprefix("bytes ").partition("-")[0] != str(upload.size):
            raise Refusal(416, "BLOB_UPLOAD_INVALID", f"the upload has {upload.size} bytes: go on from there, not {given}")
        await self._receive(request, upload)
        return _under_way(found["name"], upload, 202)

    async def _finish(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        upload = self._pending.find(found["upload"])
        digest = request.rel_url.query.get("digest", "")
        return await self._take_whole(request, found["name"], upload, digest)

    async def _cancel(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        self._pending.drop(self._pending.find(found["upload"]))
        return web.Response(status=204, headers=VERSION)

    async def _take_whole(self, request: web.BaseRequest, name: str, upload: Upload, digest: str) -> web.StreamResponse:
        """The last bytes of an upload, and the blob they make."""
        if not re.fullmatch(_DIGEST, digest):
            self._pending.drop(upload)
            raise Refusal(400, "DIGEST_INVALID", f"{digest!r} is no sha256 digest: give ?digest=sha256:…")
        await self._receive(request, upload)
        await _run(self._pending.finish, upload, digest)
        return _blob_created(name, digest)

    async def _receive(self, request: web.BaseRequest, upload: Upload) -> None:
        with self._pending.adding(upload):
            async for piece in request.content.iter_chunked(PIECE):
                await self._pending.add(upload, piece)

    async def _put_manifest(self, request: web.BaseRequest, found: dict[str, str]) -> web.StreamResponse:
        body = await _body(request)
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        wanted = found["reference"]
        by_digest = wanted.startswith("sha256:")
        if by_digest and wanted != digest:
            raise Refusal(400, "DIGEST_INVALID", f"the manifest has digest {digest}, not {wanted}")
        try:
            document = manifests.parse(body, request.headers.get("Content-Type"))
            if isinstance(document, Manifest) and not by_digest:
                manifests.require_image(document)
        except BadManifest as error:
            raise Refusal(400, "MANIFEST_INVALID", error.message) from None
        repository = reference.parse(found["name"])
        exact = Reference(repository.domain, repository.path, None, digest)
        tag = None if by_digest else repository.with_tag(wanted)
        image = await _run(self._store, body, document, exact, tag)
        if image is not None:
            self._stored(tag or exact, image)
        headers = {**VERSION, "Location": f"/v2/{found['name']}/manifests/{digest}", "Docker-Content-Digest": digest}
        return web.Response(status=201, headers=headers)

    def _store(self, body: bytes, document: Manifest | Index, exact: Reference, tag: Reference | None) -> Image | None:
        """The image that is here now; None for what is only a part of an index to come."""
        content = self._images.content
        with content.lease() as lease:
            for blob in document.blobs if isinstance(document, Manifest) else document.manifests:
                lease.pin(blob.digest)
                if not content.has(blob.digest):
                    raise Refusal(404, "MANIFEST_BLOB_UNKNOWN", f"the manifest names blob {blob.digest}, which was not pushed")
            whole = content.put(body, lease)
            try:
                if tag is not None and isinstance(document, Index):
                    # The index's digest stays the image's, as with one that is pulled.
                    return self._images.add(self._chosen(document, lease), [tag, exact], lease)
                if tag is not None or self._runs_here(document):
                    return self._images.add(whole, [tag or exact], lease)
                self._keep_part(whole.digest, document)
                return None
            except (InvalidArgument, NotFound) as error:
                raise Refusal(400, "MANIFEST_INVALID", error.message) from None

    def _runs_here(self, document: Manifest | Index) -> bool:
        """Whether it is an image, and one for this kind of machine."""
        if isinstance(document, Index):
            return False
        try:
            manifests.require_image(document)
        except BadManifest:
            return False
        config = manifests.load(self._images.content.read(document.config.digest, manifests.SIZE_LIMIT), "config")
        parts = (str(config.get(name) or "") for name in ("os", "architecture", "variant"))
        return Platform(*parts).normal in platforms.served_by(_here())

    def _keep_part(self, digest: str, document: Manifest | Index) -> None:
        """A manifest, and what it names, wait for the index that names it."""
        if isinstance(document, Manifest):
            for blob in document.blobs:
                self._pending.keep(blob.digest)
        self._pending.keep(digest)

    def _chosen(self, index: Index, lease: Lease) -> Blob:
        """The manifest for this node's platform, of this index or of one in it. BadManifest, NotFound."""
        for _ in range(manifests.INDEX_DEPTH):
            entry = manifests.choose(index, _here())
            lease.pin(entry.digest)
            document = manifests.parse(self._images.content.read(entry.digest, manifests.SIZE_LIMIT), entry.media_type)
            if isinstance(document, Manifest):
                manifests.require_image(document)
                return Blob(entry.digest, entry.size)
            index = document
        raise BadManifest(f"indexes lie in one another more than {manifests.INDEX_DEPTH} deep")


def _here() -> Platform:
    return Platform("linux", host_architecture())


def _tagged(images: list[Image]) -> Iterator[Reference]:
    for image in images:
        for tag in image.repo_tags:
            yield reference.parse_tagged(tag)


def _page(names: list[str], request: web.BaseRequest) -> list[str]:
    """``n`` names behind ``last``, as far as the query says so."""
    last, count = request.rel_url.query.get("last", ""), request.rel_url.query.get("n", "")
    rest = [name for name in names if name > last]
    return rest[: int(count)] if count.isdigit() else rest


def _offset(request: web.BaseRequest) -> int:
    given = request.headers.get("Range", "")
    if not given:
        return 0
    match = re.fullmatch(r"bytes=([0-9]{1,18})-", given)
    if match is None:
        raise Refusal(416, "RANGE_INVALID", "only ranges from an offset to the end are given: Range: bytes=<offset>-")
    return int(match[1])


async def _body(request: web.BaseRequest) -> bytes:
    body = b""
    async for piece in request.content.iter_chunked(PIECE):
        body += piece
        if len(body) > manifests.SIZE_LIMIT:
            raise Refusal(413, "MANIFEST_INVALID", f"a manifest has at most {manifests.SIZE_LIMIT} bytes")
    return body


def _json(body: Any, status: int = 200, content_type: str = "application/json") -> web.Response:
    return web.Response(status=status, body=json.dumps(body).encode(), content_type=content_type, headers=VERSION)


def _refused(status: int, code: str, message: str) -> web.Response:
    return _json({"errors": [{"code": code, "message": message, "detail": None}]}, status)


def _under_way(name: str, upload: Upload, status: int) -> web.Response:
    headers = {
        **VERSION,
        "Location": f"/v2/{name}/blobs/uploads/{upload.id}",
        "Range": f"0-{max(upload.size - 1, 0)}",
        "Docker-Upload-UUID": upload.id,
    }
    return web.Response(status=status, headers=headers)


def _blob_created(name: str, digest: str) -> web.Response:
    headers = {**VERSION, "Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return web.Response(status=201, headers=headers)


async def _run(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)
