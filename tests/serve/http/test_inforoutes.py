"""What a server says of itself, and whether its description is true."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route, WebSocketRoute

from streamenc.serve.application import application
from streamenc.serve.http.description import description
from tests.serve.httpsite import MODELS, Visit, run
from tests.support import zoo


def fits(value: Any, schema: dict[str, Any]) -> str:
    """Why a value does not fit a schema; "" where it does. Of JSON Schema, what we use."""
    if "$ref" in schema:
        schema = description()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    kinds = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
        "null": type(None),
    }  # fmt: skip
    known = {
        "type", "required", "properties", "items", "oneOf", "enum", "const", "minimum",
        "description",
    }  # fmt: skip
    assert schema.keys() <= known, schema.keys() - known
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return f"{value!r} is no {schema['type']}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{value!r} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        return f"{value!r} is not {schema['const']!r}"
    if "minimum" in schema and value < schema["minimum"]:
        return f"{value!r} is below {schema['minimum']}"
    for name in schema.get("required", ()):
        if name not in value:
            return f"{name} is missing"
    if "oneOf" in schema and sum(not fits(value, one) for one in schema["oneOf"]) != 1:
        return f"{str(value)[:200]} fits not one of {schema['oneOf']}"
    for name, inner in schema.get("properties", {}).items():
        if name in value and (why := fits(value[name], inner)):
            return f"{name}: {why}"
    if "properties" in schema and (more := value.keys() - schema["properties"].keys()):
        return f"{more} are not described"
    for item in value if "items" in schema else ():
        if why := fits(item, schema["items"]):
            return why
    return ""


def test_the_description_has_every_route_and_no_other(visit: Visit) -> None:
    async def main() -> None:
        async with visit() as (client, site):
            routes: dict[str, set[str]] = {}
            for route in application(site).routes:
                if isinstance(route, WebSocketRoute):
                    routes.setdefault(route.path, set()).add("get")
                elif isinstance(route, Route) and route.include_in_schema:
                    methods = {m.lower() for m in route.methods or ()} - {"head"}
                    routes.setdefault(route.path, set()).update(methods)
            described = {path: set(each) for path, each in description()["paths"].items()}
            assert described == routes
            told = (await client.get("/openapi.json")).json()
            assert told == description() and told["openapi"].startswith("3.1")
            refs = set(re.findall(r"#/components/schemas/(\w+)", str(told)))
            assert refs == told["components"]["schemas"].keys()

    run(main)


def test_the_page_shows_code_as_code(visit: Visit) -> None:
    async def main() -> None:
        async with visit() as (client, _):
            shown = (await client.get("/docs")).text
            assert "<code>Authorization: Bearer KEY</code>" in shown and "`" not in shown

    run(main)


def test_answers_are_as_described(visit: Visit) -> None:
    """Each described path answers with a status and a body that are described."""
    body = zoo.signal(zoo.codec("nano").encoder, 1000, seed=1)
    codes = {"codes": zoo.codec("nano").encode(body)[0].tolist(), "samples": 1000, "rate": 16000}
    asked = [
        ("GET", "/v1/models", {}, 200),
        ("GET", "/health", {}, 200),
        ("GET", "/ready", {}, 200),
        ("GET", "/version", {}, 200),
        ("GET", "/metrics", {}, 200),
        ("GET", "/openapi.json", {}, 200),
        ("GET", "/docs", {}, 200),
        ("GET", "/", {}, 200),
        ("GET", "/static/streamenc.js", {}, 200),
        ("GET", "/static/nothing.js", {}, 404),
        ("POST", "/v1/encode?model=nano", {"content": wav(body)}, 200),
        ("POST", "/v1/encode?model=mel", {"content": wav(body)}, 200),
        ("POST", "/v1/encode?model=nano&format=arrow", {"content": wav(body)}, 200),
        ("POST", "/v1/encode?model=nano&format=ndjson", {"content": wav(body)}, 200),
        ("POST", "/v1/encode?model=nano&format=events", {"content": wav(body)}, 200),
        ("POST", "/v1/encode?model=nano", {"content": b"text"}, 415),
        ("POST", "/v1/encode?model=none", {"content": b"text"}, 404),
        ("POST", "/v1/encode?model=nano&codebooks=999", {"content": wav(body)}, 422),
        ("POST", "/v1/encode", {"content": b""}, 400),
        ("POST", "/v1/decode?model=nano", {"json": codes}, 200),
        ("POST", "/v1/decode?model=nano&format=wav-f32", {"json": codes}, 200),
        ("POST", "/v1/decode?model=nano&format=flac", {"json": codes}, 200),
        ("POST", "/v1/decode?model=nano&format=opus", {"json": codes}, 200),
        ("POST", "/v1/decode?model=mel", {"json": codes}, 404),
        ("POST", "/v1/decode?model=nano", {"content": b"text"}, 415),
        ("POST", "/v1/offer", {"json": {"sdp": "v=0", "model": "nano"}}, 400),
        ("DELETE", "/v1/offer/nobody", {}, 404),
    ]
    seen: set[tuple[str, str]] = set()

    async def main() -> None:
        async with visit() as (client, site):
            for method, url, sent, status in asked:
                answer = await client.request(method, url, **sent)
                path = re.sub("/static/.*", "/static/{name}", url.partition("?")[0])
                path = re.sub("/offer/.*", "/offer/{peer}", path)
                assert answer.status_code == status, (url, answer.text)
                check(path, method.lower(), answer)
                seen.add((path, method.lower()))
            site.service.draining = "the server ends"
            check("/ready", "get", await client.get("/ready"), 503)
            check("/v1/encode", "post", await client.post("/v1/encode?model=nano"), 503)

    run(main)
    described = {(path, method) for path, each in description()["paths"].items() for method in each}
    sockets = {("/v1/stream", "get"), ("/v1/room/{name}", "get"), ("/v1/realtime", "get")}
    assert seen == described - sockets


def check(path: str, method: str, answer: Any, status: int | None = None) -> None:
    assert status in (None, answer.status_code)
    responses = description()["paths"][path][method]["responses"]
    assert str(answer.status_code) in responses, (path, answer.status_code)
    content = responses[str(answer.status_code)]["content"]
    media_type = answer.headers["content-type"]
    found = [kind for kind in content if kind == "*/*" or media_type.startswith(kind)]
    assert found, (path, media_type, list(content))
    if media_type == "application/json":
        schema = content[found[0]].get("schema")
        assert not (schema and fits(answer.json(), schema)), fits(answer.json(), schema)


def wav(sound: Any) -> bytes:
    import io
    import wave

    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        writer.writeframes((sound[0, 0].clamp(-1, 1) * 32_767).short().numpy().tobytes())
    return file.getvalue()


def test_models(visit: Visit) -> None:
    async def main() -> None:
        async with visit() as (client, _):
            models = {m["name"]: m for m in (await client.get("/v1/models")).json()["models"]}
        assert models.keys() == set(MODELS)
        nano = models["nano"]["encode"]
        model = zoo.codec("nano").encoder
        assert nano["fingerprint"] == model.fingerprint()
        assert (nano["lead"], nano["hop"]) == (model.spec.lead, model.spec.hop)
        assert nano["codebooks"] == model.spec.output.channels > 0
        assert nano["formats"] == ["s16", "f32", "opus", "media"]
        assert models["nano"]["decode"]["formats"] == ["codes"]
        assert models["mel"]["decode"] is None
        assert models["mel"]["encode"]["codebooks"] == 0
        assert models["dinov2"]["encode"]["image"]["unit"] >= 1

    run(main)


def test_metrics_have_the_steps_of_each_model_by_lanes(visit: Visit) -> None:
    async def main() -> None:
        async with visit() as (client, site):
            engine = site.service.engine("nano")
            with engine.open("nano") as session:
                await session.step(np.zeros((1, 1, 1000), np.float32))
            await engine.fresh_statistics()
            await client.get("/nothing-that-is-here")
            await client.post("/v1/encode?model=none")
            text = (await client.get("/metrics")).text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        ticks = families["streamenc_engine_tick_seconds"].samples
        of_nano = [s for s in ticks if s.name.endswith("_count") and "codes" in s.labels["model"]]
        assert sum(sample.value for sample in of_nano) > 0
        assert {sample.labels["lanes"] for sample in of_nano} <= {"1", "2", "4"}
        assert 'refusals_total{reason="unknown_model"} 1.0' in text
        assert "nothing-that-is-here" not in text and 'path="other"' in text

    run(main)


def test_what_is_not_there_answers_in_json(visit: Visit) -> None:
    async def main() -> None:
        async with visit() as (client, _):
            for method, path, status, code in (
                ("GET", "/nothing", 404, "not_found"),
                ("GET", "/v1/encode", 405, "bad_method"),
                ("DELETE", "/v1/models", 405, "bad_method"),
            ):
                answer = await client.request(method, path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
                assert answer.json()["error"]["message"]
            assert (await client.get("/v1/encode")).headers["allow"] == "POST"
            head = await client.head("/health")
            assert (head.status_code, head.content) == (200, b"")

    run(main)


def test_what_fails_tells_nothing_of_itself(visit: Visit, monkeypatch) -> None:
    async def main() -> None:
        async with visit() as (client, site):

            def fail(*_: object) -> None:
                raise RuntimeError("the password is 1234")

            monkeypatch.setattr(site.service, "models", fail)
            answer = await client.get("/v1/models")
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
            assert "1234" not in answer.text

    run(main)


def test_ready_is_told_apart_from_alive(visit: Visit, monkeypatch) -> None:
    async def main() -> None:
        async with visit() as (client, site):
            assert (await client.get("/ready")).status_code == 200
            site.service.draining = "the server ends"
            answer = await client.get("/ready")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ending")
            assert "retry-after" in answer.headers
            assert (await client.get("/health")).status_code == 200
            site.service.draining = ""
            monkeypatch.setattr(type(site.service), "ready", False)
            answer = await client.get("/ready")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")

    run(main)
