"""A registry on loopback that a test scripts: it serves what it is given, remembers what it was asked, and fails on demand.

It speaks as much of the distribution spec as pulls and pushes use, strictly: ranges, uploads in order, mounts, tokens.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import json
import re
import secrets
import ssl
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from worker.images.image import host_architecture

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Fault = Callable[["Asked", web.Request], Awaitable[web.StreamResponse | None]]


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer_tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Made:
    """An image's bytes: its manifest and every blob by digest."""

    manifest: bytes
    blobs: dict[str, bytes]
    layers: list[str]
    config: str
    media_type: str = OCI_MANIFEST

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def made(*layers: Mapping[str, bytes], platform: str = "", **changes: Any) -> Made:
    """An image of gzip layers, for this machine unless said otherwise; ``changes`` replace fields of its manifest."""
    platform = platform or f"linux/{host_architecture()}"
    tars = [layer_tar(files) for files in layers or ({"hello": b"hello\n"},)]
    packed = [gzip.compress(tar, 1, mtime=0) for tar in tars]
    system, _, architecture = platform.partition("/")
    document = {
        "os": system,
        "architecture": architecture,
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
    }
    config = json.dumps(document).encode()
    blobs = {digest_of(data): data for data in (config, *packed)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": LAYER, "digest": digest_of(data), "size": len(data)} for data in packed],
        **changes,
    }
    data = json.dumps(manifest).encode()
    return Made(data, blobs, [digest_of(one) for one in packed], digest_of(config))


@dataclass
class Asked:
    """One request as the registry saw it."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    size: int = 0

    @property
    def blob(self) -> str:
        """The digest of a blob that was asked for, "" when none was."""
        found = re.search(r"/blobs/(sha256:[0-9a-f]{64})$", self.path)
        return found.group(1) if found else ""


@dataclass
class _Repository:
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class ScriptedRegistry:
    """``async with ScriptedRegistry()``; ``address`` is ``127.0.0.1:port``. ``fault`` is asked before every request."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.repositories: dict[str, _Repository] = {}
        self.asked: list[Asked] = []
        self.fault: Fault | None = None
        self.user: tuple[str, str] | None = None
        self.tokens: set[str] | None = None
        self.token_life = 300
        self.realm = ""
        self.ranges = True
        self.mounts = True
        self.referrers: dict[str, list[dict[str, Any]]] = {}
        self._uploads: dict[str, bytearray] = {}

    async def __aenter__(self) -> Self:
        # Without a pause, handlers of clients that hang up would go on for a minute.
        self._runner = web.ServerRunner(web.Server(self._serve, handler_cancellation=True), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def repository(self, path: str) -> _Repository:
        return self.repositories.setdefault(path, _Repository())

    def add(self, path: str, tag: str, image: Made, *others: Made) -> None:
        """``image`` under a tag; ``others`` are manifests (of an index, say) only their digests name."""
        repository = self.repository(path)
        for one in (image, *others):
            repository.blobs.update(one.blobs)
            repository.manifests[one.digest] = (one.media_type, one.manifest)
        repository.tags[tag] = image.digest

    def of(self, method: str, part: str = "") -> list[Asked]:
        """What was asked by ``method`` of paths with ``part`` in them."""
        return [one for one in self.asked if one.method == method and part in one.path]

    def want_tokens(self, realm: str = "") -> None:
        """Only with a token from now on; its server is this one's /token unless ``realm`` says otherwise."""
        self.tokens = set()
        self.realm = realm or f"http://{self.address}/token"

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = Asked(request.method, request.path, request.rel_url.query, request.headers)
        self.asked.append(asked)
        if self.fault is not None and (answer := await self.fault(asked, request)) is not None:  # type: ignore[arg-type]
            return answer
        if request.path == "/token":
            return self._token(request)
        if not self._admitted(request):
            return self._challenge(request)
        for pattern, handler in self._routes():
            if match := re.fullmatch(pattern, request.path):
                return await handler(request, asked, *match.groups())
        return web.Response(status=404)

    def _routes(self) -> list[tuple[str, Callable[..., Awaitable[web.StreamResponse]]]]:
        return [
            (r"/v2/", self._ping),
            (r"/v2/(.+)/manifests/([^/]+)", self._manifest),
            (r"/v2/(.+)/blobs/uploads/", self._begin),
            (r"/v2/(.+)/blobs/uploads/([0-9a-f]+)", self._upload),
            (r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})", self._blob),
            (r"/v2/(.+)/tags/list", self._tags),
            (r"/v2/(.+)/referrers/(sha256:[0-9a-f]{64})", self._referrers),
        ]

    def _token(self, request: web.BaseRequest) -> web.Response:
        if self.user is not None:
            wanted = "Basic " + base64.b64encode(":".join(self.user).encode()).decode()
            if request.headers.get("Authorization") != wanted:
                return web.json_response({"details": "incorrect username or password"}, status=401)
        token = secrets.token_hex(8)
        assert self.tokens is not None
        self.tokens.add(token)
        return web.json_response({"token": token, "expires_in": self.token_life})

    def _admitted(self, request: web.BaseRequest) -> bool:
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        if self.tokens is not None:
            return kind == "Bearer" and value in self.tokens
        if self.user is not None:
            return kind == "Basic" and base64.b64decode(value).decode() == ":".join(self.user)
        return True

    def _challenge(self, request: web.BaseRequest) -> web.Response:
        challenge = 'Basic realm="scripted"'
        if self.tokens is not None:
            challenge = f'Bearer realm="{self.realm}",service="scripted"'
        return _error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})

    async def _ping(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        return web.json_response({})

    async def _manifest(self, request: web.BaseRequest, asked: Asked, path: str, name: str) -> web.StreamResponse:
        repository = self.repository(path)
        if request.method == "PUT":
            data = await request.read()
            digest = digest_of(data)
            for blob in (json.loads(data)["config"], *json.loads(data)["layers"]):
                if blob["digest"] not in repository.blobs:
                    return _error(400, "MANIFEST_BLOB_UNKNOWN", f"blob {blob['digest']} unknown to registry")
            repository.manifests[digest] = (request.headers["Content-Type"], data)
            if ":" not in name:
                repository.tags[name] = digest
            return web.Response(status=201, headers={"Docker-Content-Digest": digest})
        if path not in self.repositories:
            return _error(404, "NAME_UNKNOWN", "repository name not known to registry")
        digest = name if ":" in name else repository.tags.get(name, "")
        if digest not in repository.manifests:
            return _error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        media_type, data = repository.manifests[digest]
        return web.Response(body=data, headers={"Content-Type": media_type, "Docker-Content-Digest": digest})

    async def _blob(self, request: web.BaseRequest, asked: Asked, path: str, digest: str) -> web.StreamResponse:
        data = self.repository(path).blobs.get(digest)
        if data is None:
            return _error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if wanted and self.ranges:
            start = int(wanted.group(1))
            return web.Response(
                status=206, body=data[start:], headers={"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            )
        return web.Response(body=data, headers={"Content-Type": "application/octet-stream"})

    async def _tags(self, request: web.BaseRequest, asked: Asked, path: str) -> web.StreamResponse:
        tags = sorted(self.repository(path).tags)
        last = request.rel_url.query.get("last", "")
        page = [tag for tag in tags if tag > last][:2]
        headers = {}
        if page and page[-1] != tags[-1]:
            headers["Link"] = f'</v2/{path}/tags/list?last={page[-1]}&n=2&from=http://here/>; rel="next"'
        return web.json_response({"name": path, "tags": page}, headers=headers)

    async def _referrers(self, request: web.BaseRequest, asked: Asked, path: str, digest: str) -> web.StreamResponse:
        if not self.referrers:
            return web.Response(status=404)
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self.referrers.get(digest, [])}
        return web.Response(body=json.dumps(document).encode(), headers={"Content-Type": OCI_INDEX})

    async def _begin(self, request: web.BaseRequest, asked: Asked, path: str) -> web.StreamResponse:
        query = request.rel_url.query
        if "mount" in query and self.mounts:
            blob = self.repository(query["from"]).blobs.get(query["mount"])
            if blob is not None:
                self.repository(path).blobs[query["mount"]] = blob
                return web.Response(status=201)
        upload = secrets.token_hex(8)
        self._uploads[upload] = bytearray()
        return web.Response(status=202, headers={"Location": f"/v2/{path}/blobs/uploads/{upload}?_state=x%2By", "Range": "0-0"})

    async def _upload(self, request: web.BaseRequest, asked: Asked, path: str, upload: str) -> web.StreamResponse:
        held = self._uploads.get(upload)
        if held is None:
            return _error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown")
        if request.rel_url.query.get("_state") != "x+y":
            return _error(400, "BLOB_UPLOAD_INVALID", "the location was not kept as it was")
        where = {"Location": f"/v2/{path}/blobs/uploads/{upload}?_state=x%2By"}
        if request.method == "GET":
            return web.Response(status=204, headers={**where, "Range": f"0-{max(0, len(held) - 1)}"})
        first = request.headers.get("Content-Range", "").partition("-")[0]
        if first and int(first) != len(held):
            return web.Response(status=416)
        async for chunk in request.content.iter_any():
            held += chunk
            asked.size += len(chunk)
        if request.method == "PATCH":
            return web.Response(status=202, headers={**where, "Range": f"0-{len(held) - 1}"})
        if digest_of(bytes(held)) != request.rel_url.query["digest"]:
            return _error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.repository(path).blobs[request.rel_url.query["digest"]] = bytes(held)
        del self._uploads[upload]
        return web.Response(status=201)


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status, headers=headers)


async def cut(
    request: web.Request, data: bytes, at: int, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """Announces all of ``data``, sends ``at`` bytes of it, and hangs up."""
    response = web.StreamResponse(status=status, headers={"Content-Length": str(len(data)), **(headers or {})})
    await response.prepare(request)
    await response.write(data[:at])
    # The bytes must be on their way before the end is: else the client sees an answer without a body.
    while request.transport is not None and request.transport.get_write_buffer_size():  # type: ignore[attr-defined]
        await asyncio.sleep(0.001)
    if request.transport is not None:
        request.transport.close()
    return response
