"""What a server says of itself: its models, whether it lives and is ready, and what it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.io.network.websocket.livemessages import SUBPROTOCOL
from streamenc.serve.guard import Refused
from streamenc.serve.http.exposition import CONTENT_TYPE, exposition
from streamenc.serve.http.jsonanswers import LATER, JsonAnswer
from streamenc.serve.site import Site
from streamenc.spec import StreamSpec

# What a packet of input may hold, by what a model takes.
FORMATS = {
    "audio": ("s16", "f32", "opus", "media"),
    "video": ("jpeg", "h264", "rgb", "media"),
    "codes": ("codes",),
    "features": ("features",),
    "text": ("text",),
}


def routes(site: Site) -> list[BaseRoute]:
    async def models(request: Request) -> Response:
        site.guard.admit(request)
        return JsonAnswer({"models": listed(site.service.models())})

    async def health(request: Request) -> Response:
        return JsonAnswer({"status": "alive"})

    async def ready(request: Request) -> Response:
        if site.service.draining:
            raise Refused(503, "ending", site.service.draining, LATER)
        if not site.service.ready:
            raise Refused(503, "not_ready", "not all engines answer with warm models yet", LATER)
        return JsonAnswer({"status": "ready"})

    async def told_version(request: Request) -> Response:
        return JsonAnswer({"name": "streamenc", "version": own_version(), "protocol": SUBPROTOCOL})

    async def metrics(request: Request) -> Response:
        site.guard.admit(request)
        counts = await asyncio.to_thread(site.meter.gathered)
        engines = [engine.statistics() for engine in site.service.engines]
        return Response(exposition(counts, engines), media_type=CONTENT_TYPE)

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/version", told_version, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


def own_version() -> str:
    try:
        return version("streamenc")
    except PackageNotFoundError:  # run from a folder
        return "0"


def listed(models: Iterable[RemoteModel]) -> list[dict[str, Any]]:
    """Models by their names, each with what its encoder and its decoder promise."""
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        entry = found.setdefault(
            model.name,
            {"name": model.name, "public_name": model.public_name, "encode": None, "decode": None},
        )
        entry["decode" if model.decode else "encode"] = _facts(model)
    return list(found.values())


def _facts(model: RemoteModel) -> dict[str, Any]:
    spec = model.spec
    codes = spec.output if spec.output.kind == "codes" else spec.input
    facts: dict[str, Any] = {
        "input": _port(spec, output=False),
        "output": _port(spec, output=True),
        "formats": list(FORMATS[spec.input.kind]),
        "lead": spec.lead,
        "hop": spec.hop,
        "latency_ms": round(1000 * spec.latency_seconds, 3),
        "equality": spec.equality,
        "codebooks": codes.channels if spec.codebook_size else 0,
        "codebook_size": spec.codebook_size,
        "fingerprint": model.identity,
    }
    image = spec.input.image
    if image is not None:
        size = None if image.size is None else f"{image.size[1]}x{image.size[0]}"
        facts["image"] = {"unit": image.unit, "size": size}
    if spec.note:
        facts["note"] = spec.note
    return facts


def _port(spec: StreamSpec, *, output: bool) -> dict[str, Any]:
    port = spec.output if output else spec.input
    return {
        "kind": port.kind,
        "rate": float(port.rate),
        "channels": port.channels,
        "dtype": port.dtype,
    }
