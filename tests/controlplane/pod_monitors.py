"""The kind PodMonitor, as far as we use it: fields as the Prometheus Operator's own definition has them."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

NAME = "podmonitors.monitoring.coreos.com"

_TEXT: Json = {"type": "string"}
_SELECTOR: Json = {"type": "object", "properties": {"name": _TEXT, "key": _TEXT}, "required": ["key"]}
_ENDPOINT: Json = {
    "type": "object",
    "properties": {
        "port": _TEXT,
        "path": _TEXT,
        "authorization": {"type": "object", "properties": {"type": _TEXT, "credentials": _SELECTOR}},
    },
}
_SPEC: Json = {
    "type": "object",
    "required": ["selector", "podMetricsEndpoints"],
    "properties": {
        "selector": {
            "type": "object",
            "properties": {"matchLabels": {"type": "object", "additionalProperties": _TEXT}},
        },
        "podMetricsEndpoints": {"type": "array", "items": _ENDPOINT},
        "podTargetLabels": {"type": "array", "items": _TEXT},
    },
}

DEFINITION: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": NAME},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {"kind": "PodMonitor", "plural": "podmonitors", "singular": "podmonitor"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _SPEC}}},
            }
        ],
    },
}
