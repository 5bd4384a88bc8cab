"""Runs an ASGI application on uvicorn until it is told to stop (SIGINT, SIGTERM). Needs the extra `serve`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from platemark.errors import InputError, MissingExtra
from platemark.provenance.registry import Registry
from platemark.server.limits import Limits

_CONNECTIONS = 200  # beyond, uvicorn answers 503 by itself


def serve(
    home: Path,
    registry: Registry,
    *,
    address: tuple[str, int],
    per_minute: int,
    max_bytes: int,
    proxies: tuple[str, ...] = (),
    ready: Callable[[str], None] = lambda where: None,
) -> None:
    """Serves the resolution API at `address` (host, port; port 0 takes a free one) and tells `ready` the URL once it listens.

    `proxies`: whose X-Forwarded-For is believed; by default nobody's. Raises `MissingExtra`, `InputError` (the address cannot be had).
    """
    try:
        import uvicorn

        from platemark.server.resolution import create_app
    except ImportError as error:
        raise MissingExtra("the resolution service", "serve") from error
    app = create_app(home, registry, Limits(per_minute=per_minute, max_bytes=max_bytes))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # queries name pictures
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=10,
    )
    with _listen(*address) as listener:
        host, port = listener.getsockname()[:2]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not an address"
        raise InputError(f"cannot listen on {host}:{port}: {reason}", "choose another --host or --port") from error
