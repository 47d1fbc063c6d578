"""The list of all workers for whoever scrapes them."""

from __future__ import annotations

from synapse_operator import naming
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired.manifest import Manifest, manifest
from synapse_operator.naming import Kind

METRICS_PORT_NAME = "metrics"


def metrics_service(scale: SynapseScale) -> Manifest:
    """Return the metrics Service.

    Headless, since a virtual address would lead each scrape to some worker; with the addresses of workers that
    are not ready, since their figures are the ones that somebody will want to see.
    """
    port = scale.spec.workers.health_port
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": naming.worker_selector(scale.metadata.name),
        "ports": [{"name": METRICS_PORT_NAME, "port": port, "targetPort": METRICS_PORT_NAME, "protocol": "TCP"}],
    }
    return manifest(scale, Kind.SERVICE, naming.metrics_service_name(scale.metadata.name), {"spec": spec})
