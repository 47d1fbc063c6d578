"""The kind PodMonitor, as far as we use it: fields as the Prometheus Operator's own definition has them."""

from __future__ import annotations

import json
from typing import Any

from synapse_operator import naming
from tests.controlplane.harness import ControlPlane

Json = dict[str, Any]

NAME = "podmonitors.monitoring.coreos.com"

_TEXT: Json = {"type": "string"}
_SELECTOR: Json = {"type": "object", "properties": {"name": _TEXT, "key": _TEXT}, "required": ["key"]}
_ENDPOINT: Json = {
    "type": "object",
    "properties": {
        "port": _TEXT,
        "path": _TEXT,
        "relabelings": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"sourceLabels": {"type": "array", "items": _TEXT}, "targetLabel": _TEXT},
            },
        },
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


def install(plane: ControlPlane) -> None:
    """Have the cluster know the kind."""
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(DEFINITION))
    plane.kubectl("wait", "--for=condition=Established", "crd", NAME)


def of_scale(plane: ControlPlane, namespace: str, scale: str = "main") -> Json:
    """Return the PodMonitor of a scale, {} = there is none."""
    name = naming.pod_monitor_name(scale)
    found: Json = json.loads(
        plane.kubectl("get", "podmonitor", name, "-n", namespace, "-o", "json", "--ignore-not-found") or "{}"
    )
    return found
