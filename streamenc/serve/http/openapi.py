"""What the server offers: as OpenAPI 3.1 at /openapi.json, and as a page at /docs."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from streamenc.serve.http.description import description
from streamenc.serve.http.jsonanswers import JsonAnswer
from streamenc.serve.site import Site

CODE = re.compile("`([^`]+)`")
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}
h2{margin-top:2.5rem;border-top:1px solid #ccc;padding-top:1rem}
code,b.method{font-family:ui-monospace,monospace}
b.method{background:#12457a;color:#fff;border-radius:4px;padding:.1em .5em;margin-right:.5em}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;
padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ddd}
@media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#151515}a{color:#8ab8f0}}
"""


def routes(site: Site) -> list[BaseRoute]:
    async def openapi(request: Request) -> Response:
        return JsonAnswer(description())

    async def docs(request: Request) -> Response:
        return HTMLResponse(page(description()))

    return [
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
    ]


def page(described: dict[str, Any]) -> str:
    """The description for people."""
    info = described["info"]
    parts = [f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>", _text(info)]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(
                f'<h2><b class="method">{method.upper()}</b><code>{escape(path)}</code></h2>'
            )
            parts += [f"<p><strong>{_marked(operation['summary'])}</strong></p>", _text(operation)]
            parts.append(
                _table(
                    "Query",
                    [
                        (p["name"] + ("" if p.get("required") else "?"), p["description"])
                        for p in operation.get("parameters", ())
                        if "$ref" not in p
                    ],
                )
            )
            body = operation.get("requestBody")
            if body:
                parts.append(_table("Body", [(kind, "") for kind in body["content"]]))
            parts.append(
                _table(
                    "Answers",
                    [
                        (status, answer["description"] + _types(answer))
                        for status, answer in operation["responses"].items()
                    ],
                )
            )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{STYLE}</style></head>"
        f'<body><main>{"".join(parts)}<p><a href="openapi.json">openapi.json</a></p></main></body>'
        "</html>"
    )


def _text(described: dict[str, Any]) -> str:
    paragraphs = described.get("description", "").split("\n\n")
    return "".join(f"<p>{_marked(paragraph)}</p>" for paragraph in paragraphs if paragraph)


def _marked(text: str) -> str:
    """As HTML, what stands between backticks as code."""
    return CODE.sub(r"<code>\1</code>", escape(text))


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_marked(says)}</td></tr>"
        for name, says in rows
    )
    return (
        f"<table><thead><tr><th colspan=2>{title}</th></tr></thead><tbody>{cells}</tbody></table>"
    )


def _types(answer: dict[str, Any]) -> str:
    types = ", ".join(answer.get("content", ()))
    return f" ({types})" if types else ""
