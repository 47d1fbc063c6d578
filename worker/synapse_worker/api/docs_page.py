"""The page /docs: the OpenAPI document for a person's eyes, without a script, since clusters may reach no CDN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#8882;padding:.1em .3em}h2{margin-top:2.5rem}dt{margin-top:.5rem}"
)

Document = Mapping[str, Any]
"""Any JSON object of an OpenAPI document."""


def page(document: Document) -> str:
    """Return the page of an OpenAPI document."""
    body = "\n".join(_lines(document))
    title = escape(document["info"]["title"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<body>\n{body}\n</body></html>"
    )


def _lines(document: Document) -> Iterator[str]:
    info = document["info"]
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
    yield f"<p>{escape(info.get('summary', ''))} For programs: <a href=openapi.json>openapi.json</a>.</p>"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation.get('description', ''))}</p>"
            yield from _parameters(operation, document)
            answers = ", ".join(
                f"{escape(status)} {escape(answer.get('description', ''))}"
                for status, answer in operation["responses"].items()
            )
            yield f"<p>Answers: {answers}</p>"


def _parameters(operation: Document, document: Document) -> Iterator[str]:
    rows = [(each["name"], each["in"], each.get("description", "")) for each in operation.get("parameters", ())]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        name = content["schema"].get("$ref", "").rsplit("/", 1)[-1]
        fields = document.get("components", {}).get("schemas", {}).get(name, {}).get("properties", {})
        rows += [(field, "body", schema.get("description", "")) for field, schema in fields.items()]
    if rows:
        yield "<dl>"
        for name, where, text in rows:
            yield f"<dt><code>{escape(name)}</code> ({escape(where)})</dt><dd>{escape(text)}</dd>"
        yield "</dl>"
