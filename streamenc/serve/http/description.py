"""The OpenAPI 3.1 description: every path, what it takes, and every answer that it gives."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import msgspec

from streamenc.io.network.websocket.livemessages import SUBPROTOCOL
from streamenc.serve.adapters.webrtc import Offer
from streamenc.serve.files.fileroutes import DecodeQuery, EncodeQuery
from streamenc.serve.files.writers import SOUND, TOKENS
from streamenc.serve.http.inforoutes import own_version

ERROR = {"$ref": "#/components/schemas/Error"}
_TEXT, _NUMBER, _COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}
_PORT = {
    "type": "object",
    "required": ["kind", "rate", "channels", "dtype"],
    "properties": {"kind": _TEXT, "rate": _NUMBER, "channels": _COUNT, "dtype": _TEXT},
}
SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string", "description": "A word for programs."},
                    "message": {"type": "string", "description": "A sentence for people."},
                },
            }
        },
    },
    "Models": {
        "type": "object",
        "required": ["models"],
        "properties": {
            "models": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}
        },
    },
    "Model": {
        "type": "object",
        "required": ["name", "public_name", "encode", "decode"],
        "properties": {
            "name": _TEXT,
            "public_name": _TEXT,
            "encode": {"oneOf": [{"$ref": "#/components/schemas/Way"}, {"type": "null"}]},
            "decode": {"oneOf": [{"$ref": "#/components/schemas/Way"}, {"type": "null"}]},
        },
    },
    "Way": {
        "type": "object",
        "description": "What an encoder or a decoder takes, gives and promises.",
        "required": [
            "input", "output", "formats", "lead", "hop", "latency_ms", "equality", "codebooks",
            "codebook_size", "fingerprint",
        ],
        "properties": {
            "input": _PORT,
            "output": _PORT,
            "formats": {"type": "array", "items": _TEXT},
            "lead": {"type": "integer", "description": "Items of the first step."},
            "hop": {"type": "integer", "description": "Items of each further step."},
            "latency_ms": {
                "type": "number",
                "description": "From an item's coming to the step that takes it in, at most.",
            },
            "equality": {"enum": ["offline", "segment", "window"]},
            "codebooks": _COUNT,
            "codebook_size": _COUNT,
            "fingerprint": {"type": "string", "description": "Of its weights and its options."},
            "image": {"type": "object"},
            "note": _TEXT,
        },
    },
    "Tokens": {
        "type": "object",
        "required": ["model", "frame_rate", "codebook_size", "samples", "rate", "fingerprint"],
        "oneOf": [{"required": ["codes"]}, {"required": ["features"]}],
        "properties": {
            "model": _TEXT,
            "public_name": _TEXT,
            "fingerprint": _TEXT,
            "equality": {"enum": ["offline", "segment", "window"]},
            "frame_rate": {"type": "number", "description": "Items a second."},
            "codebook_size": _COUNT,
            "samples": {"type": "integer", "description": "Decoded, at the file's own rate."},
            "rate": {"type": "number", "description": "Of the file: samples or images a second."},
            "seconds": _NUMBER,
            "codes": {
                "type": "array",
                "description": "A list for each codebook, of its entries in time.",
                "items": {"type": "array"},
            },
            "features": {
                "type": "array",
                "description": "A list for each bin, of its values in time.",
                "items": {"type": "array"},
            },
            "dtype": _TEXT,
            "scales": {
                "type": "array",
                "items": _NUMBER,
                "description": "Of each item, what its decoded waveform is multiplied by.",
            },
            "gaps": {
                "type": "array",
                "items": _COUNT,
                "description": "Items that do not follow on from the one before.",
            },
            "segments": {"type": "array", "items": {"type": "integer"}},
            "times": {"type": "array", "items": _NUMBER},
            "broken": {"type": "string", "description": "Why the file is not the whole."},
            "remarks": {"type": "array", "items": _TEXT},
        },
    },
    "Offer": {
        "type": "object",
        "required": ["sdp", "model"],
        "properties": {field: {} for field in Offer.__struct_fields__},
    },
    "Answer": {
        "type": "object",
        "required": ["type", "sdp", "peer", "session"],
        "properties": {"type": {"const": "answer"}, "sdp": _TEXT, "peer": _TEXT, "session": _TEXT},
    },
    "Status": {"type": "object", "required": ["status"], "properties": {"status": _TEXT}},
    "Version": {
        "type": "object",
        "required": ["name", "version", "protocol"],
        "properties": {"name": _TEXT, "version": _TEXT, "protocol": {"const": SUBPROTOCOL}},
    },
}  # fmt: skip
WORDS = {
    304: "The client has it.",
    400: "The query or the body is not as it should be.",
    401: "No key, or a wrong one.",
    403: "The Origin is not allowed.",
    404: "There is none of that name; of models, the message lists those that there are.",
    406: "Accept takes none of the answers that there are.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    415: "The body is no file that can be read.",
    422: "The file can be read, and is not what the model takes, or too much.",
    429: "Too many at once of this key.",
    500: "Something went wrong in the server, whose log tells more.",
    501: "What it takes is not installed; the message says how to install it.",
    503: "Full, not ready, or ending: Retry-After says when to try again.",
}
STREAM = (
    f"Connect with the subprotocol `{SUBPROTOCOL}`. Text messages are JSON for control: open, "
    "flush, mark, set, snapshot, close and their answers; binary messages are packets of the wire "
    "format, one each, with their time and their number. `docs/server` is the whole protocol.\n\n"
    "A stream outlives its connection: `/v1/stream?resume` goes on with it, bit for bit."
)
ROOM = (
    f"Connect with the subprotocol `{SUBPROTOCOL}`. One produces, with `produce` or `open` as the "
    "first message, and many listen, with `listen`. `docs/server` is the whole protocol."
)
REALTIME = (
    "`/v1/realtime?model=NAME`, a subset of OpenAI's realtime events, in JSON: sound comes in "
    "`input_audio_buffer.append`, and tokens go out in `response.tokens.delta`."
)
OF_SOCKETS = (400, 401, 403, 429, 503)
OF_OFFERS = (400, 401, 403, 413, 429, 501, 503)
OF_FILES = (400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 503)


@cache
def description() -> dict[str, Any]:
    """As JSON takes it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamenc",
            "version": own_version(),
            "description": "Live sound and picture in; codes, features or latents out, frame by "
            "frame.\n\nWhere the server wants a key, it comes as `Authorization: Bearer KEY`, or "
            "as `?token=KEY`.",
        },
        "security": [{}, {"bearer": []}, {"token": []}],
        "paths": {
            "/v1/encode": {"post": _encode()},
            "/v1/decode": {"post": _decode()},
            "/v1/models": {"get": _get("The models, and what each promises.", "Models", 401)},
            "/v1/stream": {"get": _socket("A live stream, over a WebSocket.", STREAM)},
            "/v1/room/{name}": {"get": _room()},
            "/v1/realtime": {"get": _socket("The same in OpenAI's events.", REALTIME)},
            "/v1/offer": {"post": _offer()},
            "/v1/offer/{peer}": {"delete": _hang_up()},
            "/health": {"get": _get("Whether the process lives.", "Status")},
            "/ready": {"get": _get("Whether streams are taken: models are warm.", "Status", 503)},
            "/version": {"get": _get("Which version this is.", "Version")},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _other("This description.", "application/json")},
            "/docs": {"get": _other("This description, for people.", "text/html")},
            "/": {"get": _other("A page to try it on.", "text/html", 304)},
            "/static/{name}": {"get": _static()},
        },
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "token": {"type": "apiKey", "in": "query", "name": "token"},
            },
        },
    }


def _encode() -> dict[str, Any]:
    content = {format.media_type: {"schema": {"type": "string"}} for format in TOKENS}
    content["application/json"] = {"schema": {"$ref": "#/components/schemas/Tokens"}}
    return {
        "summary": "A file of sound, images or text to codes or features.",
        "description": "The body is the file itself, in any format that FFmpeg knows, such as WAV, "
        "FLAC, MP3, Opus, MP4, Matroska, JPEG or PNG; of models of text, lines of UTF-8. Playlists "
        "and what names other files are refused.\n\nCodes are those of `streamenc encode FILE`. "
        "JSON comes as a whole; an Arrow stream (a recording, `.arrows`), JSON lines and events "
        "come as they are made, and say in their last batch or line where they are not the whole.",
        "parameters": _query(EncodeQuery),
        "requestBody": {"required": True, "content": {"*/*": {}}},
        "responses": {"200": {"description": "What came out.", "content": content}}
        | _errors(*OF_FILES),
    }


def _decode() -> dict[str, Any]:
    tokens = {"schema": {"$ref": "#/components/schemas/Tokens"}}
    return {
        "summary": "Codes, or latents, to sound.",
        "description": "The body is JSON as /v1/encode answers it, of which `codes` (or "
        "`features`) are needed, and `scales` of models that have them; or JSON lines; or an "
        "Arrow recording (`.arrows`), its batches not compressed; or an `.ecdc`.\n\nThe "
        "sound comes as it is made. "
        "A WAV says no length in its header.",
        "parameters": _query(DecodeQuery),
        "requestBody": {
            "required": True,
            "content": {
                "application/json": tokens,
                "application/x-ndjson": {},
                "application/vnd.apache.arrow.stream": {},
                "application/octet-stream": {},
            },
        },
        "responses": {
            "200": {
                "description": "The sound.",
                "content": {format.media_type: {} for format in SOUND},
            }
        }
        | _errors(*OF_FILES),
    }


def _socket(summary: str, says: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "description": says,
        "responses": {"101": {"description": "The WebSocket is open."}} | _errors(*OF_SOCKETS),
    }


def _room() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    described = _socket("A room, over a WebSocket.", ROOM)
    return described | {"parameters": [name | {"description": "Up to 64 of A-Z a-z 0-9 . _ ~ -"}]}


def _offer() -> dict[str, Any]:
    described = _get("A microphone or camera by WebRTC.", "Answer", *OF_OFFERS)
    schema = {"$ref": "#/components/schemas/Offer"}
    return described | {
        "description": "A session description with a track, and a data channel "
        f"`{SUBPROTOCOL}`, over which comes what `/v1/stream` sends.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
    }


def _hang_up() -> dict[str, Any]:
    said = "As the answer to the offer has it."
    peer = {"name": "peer", "in": "path", "required": True, "schema": _TEXT, "description": said}
    return {
        "summary": "The end of what an offer began.",
        "parameters": [peer],
        "responses": {"204": {"description": "It is closed."}} | _errors(401, 403, 404, 429),
    }


def _metrics() -> dict[str, Any]:
    described = _other("Counts of all processes, for Prometheus.", "text/plain")
    return described | {"responses": described["responses"] | _errors(401)}


def _get(summary: str, schema: str, *statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {
        "summary": summary,
        "responses": {"200": {"description": "So it is.", "content": content}} | _errors(*statuses),
    }


def _other(summary: str, media_type: str, *statuses: int) -> dict[str, Any]:
    answer = {"description": summary, "content": {media_type: {}}}
    others = {str(status): {"description": WORDS[status]} for status in statuses}
    return {"summary": summary, "responses": {"200": answer} | others}


def _static() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    described = _other("What the page loads; `streamenc.js` is the client for others.", "*/*", 304)
    described["responses"] |= _errors(404)
    return described | {"parameters": [name | {"description": "streamenc.js, for one."}]}


def _errors(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": ERROR}}
    return {str(status): {"description": WORDS[status], "content": content} for status in statuses}


def _query(kind: type[msgspec.Struct]) -> list[dict[str, Any]]:
    """The fields of a query, with what the docstring says of each."""
    said = _said(kind.__doc__ or "")
    parameters = []
    for field in msgspec.structs.fields(kind):
        integer = int in get_args(field.type) or any(
            int in get_args(inner) for inner in get_args(field.type)
        )
        parameters.append(
            {
                "name": field.name,
                "in": "query",
                "required": field.required,
                "description": said[field.name],
                "schema": {"type": "integer", "minimum": 1} if integer else {"type": "string"},
            }
        )
    return parameters


def _said(docstring: str) -> dict[str, str]:
    """By attribute, its lines in the docstring."""
    said: dict[str, str] = {}
    name = ""
    for line in docstring.partition("Attributes:")[2].splitlines():
        start, colon, rest = line.strip().partition(": ")
        if colon and start.isidentifier() and line.startswith(" " * 8 + start):
            name, said[start] = start, rest
        elif name and line.strip():
            said[name] += " " + line.strip()
    return said
