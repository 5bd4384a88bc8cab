"""The C2PA Soft Binding Resolution API over the registry: which manifests belong to a soft binding or to a picture, and their bytes.

Routes and JSON shapes are those of the specification's OpenAPI document (C2PA Soft Binding Resolution API, versions 2.1 to 2.4):

    GET, POST /matches/byBinding      GET /manifests/{manifestId}
    POST /matches/byContent           GET /services/supportedAlgorithms

Left out: storing, which is the press's alone, and `/matches/byReference`, since this service fetches nothing. Answers hold manifests and
their ids; never a key, a prompt, or what else the registry knows. Errors are `{"error": {"code", "message", "remedy"}}`. Reading is public:
any web page may ask (CORS), within the limits. Knows nothing of how records are stored or marks are read.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from platemark.errors import DamagedImageError, ImageError, InputError, PlatemarkError
from platemark.imaging import decode, sniff
from platemark.provenance import softbinding
from platemark.provenance.keyring import held_keys
from platemark.provenance.record import WATERMARK_ALGORITHM
from platemark.provenance.registry import Registry
from platemark.provenance.softbinding import Binding, Match
from platemark.server.limits import Gate, Limits, RateLimiter, RefusedError, client_of, read_body

MAX_RESULTS = 100
DEFAULT_RESULTS = 10
_MAX_QUERY = 4096  # characters of a query string
_MAX_JSON = 64 * 1024
_MAX_ID = 500
_PICTURES = ("image/", "application/octet-stream")


def create_app(home: Path, registry: Registry, limits: Limits = Limits()) -> Starlette:  # noqa: B008 - frozen
    """The ASGI application. `home` holds the watermark keys that pictures are looked into with; the registry stays the caller's."""
    service = _Service(home, registry, limits)
    routes = [
        Route("/matches/byBinding", service.by_binding, methods=["GET", "POST"]),
        Route("/matches/byContent", service.by_content, methods=["POST"]),
        Route("/manifests/{manifest_id:path}", service.manifest, methods=["GET"]),
        Route("/services/supportedAlgorithms", service.algorithms, methods=["GET"]),
        Route("/healthz", service.health, methods=["GET"]),
    ]
    anyone = Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["GET", "POST"], allow_headers=["content-type"])
    handlers: dict[Any, Any] = {
        PlatemarkError: _platemark_error,
        HTTPException: _http_error,
        ClientDisconnect: _gone,
        Exception: _unexpected,
    }
    app = Starlette(routes=routes, middleware=[anyone], exception_handlers=handlers)
    app.router.redirect_slashes = False  # a path is right or it is not
    return app


class _Service:
    def __init__(self, home: Path, registry: Registry, limits: Limits) -> None:
        self._home, self._registry, self._limits = home, registry, limits
        self._rate = RateLimiter(limits.per_minute)
        self._gate = Gate(limits.uploads, limits.at_once)

    async def by_binding(self, request: Request) -> Response:
        self._rate.take(client_of(request))
        limit = _max_results(request)
        if request.method == "GET":
            binding = Binding(_required(request, "alg"), _required(request, "value"))
        else:
            binding = _binding_of(await read_body(request, _MAX_JSON, self._limits.body_seconds))
        return _answer(await run_in_threadpool(softbinding.by_binding, self._registry, binding, limit))

    async def by_content(self, request: Request) -> Response:
        self._rate.take(client_of(request), self._limits.content_cost)
        limit, algorithm = _max_results(request), request.query_params.get("alg")
        if algorithm is not None:
            softbinding.require_algorithm(algorithm)
        hint = _hint(request)
        kind = request.headers.get("content-type", "")
        if not kind.startswith(_PICTURES):
            raise RefusedError(415, f"the content type {kind[:60]!r} is not a picture's", "send it as image/png, image/jpeg, ...")
        async with self._gate.enter():
            data = await read_body(request, self._limits.max_bytes, self._limits.body_seconds)
            look = partial(self._look_into, data, algorithm=algorithm, hint=hint, limit=limit)
            async with self._gate.second:
                return _answer(await run_in_threadpool(look))

    def _look_into(self, data: bytes, **asked: Any) -> list[Match]:
        if sniff(data) is None:
            raise RefusedError(415, "the body is not a picture of a known format", "send a PNG, JPEG, WebP, AVIF, TIFF or GIF picture")
        picture = decode(data, max_pixels=self._limits.max_pixels)  # what is too big is refused by its header
        keys = [held.watermark for held in held_keys(self._home)]
        return softbinding.by_content(self._registry, keys, picture.array, **asked)

    async def manifest(self, request: Request) -> Response:
        self._rate.take(client_of(request))
        manifest_id, active = request.path_params["manifest_id"], _flag(request, "returnActiveManifest")
        if not manifest_id or len(manifest_id) > _MAX_ID or not manifest_id.isprintable():
            raise InputError("this cannot be the identifier of a C2PA manifest", "use a manifestId of a match")
        found = await run_in_threadpool(partial(softbinding.manifest, self._registry, manifest_id, active_only=active))
        if found is None:
            raise RefusedError(404, "there is no such manifest here", "use a manifestId of a match")
        return Response(found, media_type="application/c2pa", headers={"x-content-type-options": "nosniff"})

    async def algorithms(self, request: Request) -> Response:
        self._rate.take(client_of(request))
        return JSONResponse({"watermarks": [{"alg": WATERMARK_ALGORITHM}], "fingerprints": [{"alg": softbinding.FINGERPRINT_ALGORITHM}]})

    async def health(self, request: Request) -> Response:
        await run_in_threadpool(self._registry.version)
        return JSONResponse({"status": "ok"})


def _answer(matches: list[Match]) -> Response:
    """`c2pa.softBindingQueryResult`. Without an `endpoint`, manifests are to be had from this service."""
    found = [
        {"manifestId": match.manifest_id} | ({} if match.similarity is None else {"similarityScore": match.similarity}) for match in matches
    ]
    return JSONResponse({"matches": found})


def _max_results(request: Request) -> int:
    """At least 1; more than 100 are not given."""
    if len(request.url.query) > _MAX_QUERY:
        raise RefusedError(414, "the query is too long", "send it by POST")
    text = request.query_params.get("maxResults", str(DEFAULT_RESULTS))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise InputError("maxResults must be a whole number from 1 up", f"leave it out for {DEFAULT_RESULTS}")
    return min(int(text), MAX_RESULTS)


def _required(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if not value:
        raise InputError(f"the parameter {name!r} is missing", "give 'alg' and 'value'")
    return value


def _hint(request: Request) -> Binding | None:
    algorithm, value = (request.query_params.get(name) for name in ("hintAlg", "hintValue"))
    if (algorithm is None) != (value is None):
        raise InputError("hintAlg and hintValue belong together", "give both or neither")
    return Binding(algorithm, value) if algorithm is not None and value is not None else None


def _binding_of(body: bytes) -> Binding:
    """`c2pa.softBindingQuery`."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError("the body must be JSON", 'send {"alg": ..., "value": ...}') from error
    if not isinstance(asked, dict) or not all(isinstance(asked.get(name), str) for name in ("alg", "value")):
        raise InputError("the body must be an object with the texts 'alg' and 'value'", 'send {"alg": ..., "value": ...}')
    return Binding(asked["alg"], asked["value"])


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false").lower()
    if text not in ("true", "false"):
        raise InputError(f"{name} must be true or false", "correct it")
    return text == "true"


def _status(error: PlatemarkError) -> int:
    if isinstance(error, RefusedError):
        return error.status
    if isinstance(error, ImageError):
        return 400 if isinstance(error, DamagedImageError) else 413
    return 400 if isinstance(error, InputError) else 503


def _fault(status: int, error: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": error}, status_code=status, headers=headers)


async def _platemark_error(request: Request, error: PlatemarkError) -> Response:
    """What concerns the operator (where the registry lies, what it said) stays on this side."""
    status = _status(error)
    wait = getattr(error, "retry_after", None)
    if status == 503 and not isinstance(error, RefusedError):
        said = {"code": error.code, "message": "the registry cannot be asked right now", "remedy": "try again later"}
        return _fault(503, said, {"retry-after": "30"})
    return _fault(status, error.as_dict(), {"retry-after": str(wait)} if wait else None)


async def _http_error(request: Request, error: HTTPException) -> Response:
    remedy = "see the C2PA Soft Binding Resolution API"
    return _fault(error.status_code, {"code": "http", "message": str(error.detail), "remedy": remedy}, dict(error.headers or {}))


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _unexpected(request: Request, error: Exception) -> Response:
    return _fault(500, {"code": "error", "message": "the service failed", "remedy": "try again later"})
