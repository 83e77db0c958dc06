"""The page at /docs, made from the OpenAPI description alone: FastAPI's own loads its scripts from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; border-top: 1px solid #8886; padding-top: 1rem } code, pre { font-size: .875rem }
pre { overflow-x: auto; padding: .75rem 1rem; background: #8882; border-radius: .5rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .25rem 1rem .25rem 0; vertical-align: top }
"""
EXAMPLES = {
    "/predict": (
        "curl --form file=@picture.jpg ADDRESS/predict",
        "curl --form file=@one.jpg --form file=@two.png 'ADDRESS/predict?conf=0.4'",
        "curl --header 'Content-Type: image/jpeg' --data-binary @picture.jpg ADDRESS/predict",
    ),
    "/health": ("curl ADDRESS/health",),
    "/metrics": ("curl ADDRESS/metrics",),
}


def docs_page(described: dict[str, Any]) -> str:
    """One HTML page about an OpenAPI description, without scripts and without requests."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(described['info']['title'])}</title><style>{STYLE}</style>",
        f"<h1>{escape(described['info']['title'])}</h1><p>{escape(described['info'].get('description', ''))}</p>",
        "<p><a href=/>A page to try it</a> · <a href=/openapi.json>the whole description as OpenAPI</a></p>",
    ]
    for path, methods in described["paths"].items():
        for method, one in methods.items():
            parts.append(
                f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(one.get('description', ''))}</p>"
            )
            parts += [
                f"<pre>{escape(line.replace('ADDRESS', 'http://127.0.0.1:8000'))}</pre>"
                for line in EXAMPLES.get(path, ())
            ]
            parts.append(_table("parameter", [(p["name"], _parameter(p)) for p in one.get("parameters", [])]))
            parts.append(
                _table("status", [(code, said["description"]) for code, said in sorted(one["responses"].items())])
            )
    for name, schema in described.get("components", {}).get("schemas", {}).items():
        if "ValidationError" not in name and schema.get("properties"):
            rows = [(key, _type(value)) for key, value in schema["properties"].items()]
            parts.append(
                f"<h2>{escape(name)}</h2><p>{escape(schema.get('description', ''))}</p>{_table('field', rows)}"
            )
    return "\n".join(parts)


def _table(head: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<tr><td><code>{escape(key)}</code></td><td>{escape(value)}</td></tr>" for key, value in rows)
    return f"<table><thead><tr><th>{head}</th><th></th></tr></thead><tbody>{cells}</tbody></table>"


def _parameter(one: dict[str, Any]) -> str:
    schema = one.get("schema", {})
    bounds = f"{schema.get('minimum', '')} to {schema.get('maximum', '')}"
    return f"{one.get('description') or schema.get('description', '')}, {bounds}, {schema.get('default')} when absent"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("prefixItems"):
        return f"{len(schema['prefixItems'])} of {_type(schema['prefixItems'][0])}"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type") or json.dumps(schema))
