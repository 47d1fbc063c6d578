"""The variables of workers that hold no secret.

Immutable and named by content: pods that still run with the old values keep them until they are replaced, also
when one of them restarts in the middle of a rollout. `plan` removes those that nobody needs any more.
"""

from __future__ import annotations

from collections.abc import Mapping

from synapse_operator import naming
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired.manifest import Manifest, manifest
from synapse_operator.naming import Kind


def environment_config_map(scale: SynapseScale, environment: Mapping[str, str]) -> Manifest:
    """Return the ConfigMap that holds `environment`."""
    name = naming.config_map_name(scale.metadata.name, environment)
    content = {"immutable": True, "data": dict(environment)}
    # The empty label is what the watch of all ConfigMaps selects by; see `naming`.
    return manifest(scale, Kind.CONFIG_MAP, name, content, labels={naming.SYNC_LABEL: ""})
