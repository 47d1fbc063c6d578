"""The identity of worker pods, for image pulls and cloud roles; none of them talks to the API server."""

from __future__ import annotations

from synapse_operator import naming
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired.manifest import Manifest, manifest
from synapse_operator.naming import Kind


def worker_service_account(scale: SynapseScale) -> Manifest:
    """Return the ServiceAccount of the workers, whose token is mounted nowhere; with it the cloud role of the spec."""
    name = naming.service_account_name(scale.metadata.name)
    return manifest(
        scale,
        Kind.SERVICE_ACCOUNT,
        name,
        {"automountServiceAccountToken": False},
        annotations=scale.spec.workers.template.service_account_annotations,
    )
