"""Who may talk to the workers, and to whom they may talk.

A NetworkPolicy knows addresses and ports, not names: the stores are allowed by the ports of their URLs, wherever
they are. Whether a policy is enforced is up to the cluster's network plugin.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.scale import SynapseScale
from synapse_operator.api.tier import API_PORT
from synapse_operator.desired.environment import POSTGRES_URL, REDIS_URL
from synapse_operator.desired.manifest import Manifest, manifest
from synapse_operator.naming import Kind

STANDARD_PORTS = {REDIS_URL: 6379, POSTGRES_URL: 5432}

DNS_PORT = 53
OTLP_PORT = 4317
HTTP_PORT = 80
HTTPS_PORT = 443
"""Model providers, tools, S3 and hosted collectors."""

CREDENTIAL_ADDRESSES = ("169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32")
"""Where cloud credentials come from: instance profiles, ECS roles, EKS Pod Identity."""


def worker_network_policy(scale: SynapseScale, secrets: Mapping[str, SecretStr]) -> Manifest:
    """Return the NetworkPolicy of all workers, and of the V2 API where it is served.

    Args:
        scale: the owner.
        secrets: variable -> what a worker reads from a Secret; the ports of the URLs are allowed.
    """
    ports = {port for name, standard in STANDARD_PORTS.items() for port in store_ports(secrets[name], standard)}
    ports |= _collector_ports(scale)
    endpoint = scale.spec.storage.s3 and scale.spec.storage.s3.endpoint_url
    if endpoint:
        ports |= store_ports(SecretStr(endpoint), HTTP_PORT if endpoint.startswith("http://") else HTTPS_PORT)
    selector, ingress = naming.worker_selector(scale.metadata.name), [_port(scale.spec.workers.health_port)]
    if scale.spec.api.enabled:
        del selector[naming.ROLE_LABEL]
        ingress.append(_port(API_PORT))
    spec = {
        "podSelector": {"matchLabels": selector},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": ingress}],
        "egress": [
            {"ports": [_port(DNS_PORT, "UDP"), _port(DNS_PORT)]},
            {"ports": [_port(port) for port in sorted({*ports, HTTPS_PORT})]},
            {"to": [{"ipBlock": {"cidr": address}} for address in CREDENTIAL_ADDRESSES]},
            *(rule.model_extra or {} for rule in scale.spec.network_policy.extra_egress),
        ],
    }
    return manifest(scale, Kind.NETWORK_POLICY, naming.network_policy_name(scale.metadata.name), {"spec": spec})


def store_ports(url: SecretStr, standard: int) -> set[int]:
    """Return the ports of a store's URL (of a Redis Cluster: of all nodes that it names)."""
    _, _, rest = url.get_secret_value().strip().partition("://")
    places = rest.partition("/")[0].partition("?")[0].rpartition("@")[2]
    ports = set()
    for place in places.split(","):
        try:
            ports.add(urlsplit(f"//{place.strip()}").port or standard)
        except ValueError:
            ports.add(standard)  # the store's own condition says what is wrong with the URL
    return ports


def _collector_ports(scale: SynapseScale) -> set[int]:
    endpoint = scale.spec.observability.otlp_endpoint
    if endpoint is None:
        return set()
    return store_ports(SecretStr(endpoint), HTTPS_PORT if endpoint.startswith("https://") else OTLP_PORT)


def _port(number: int, protocol: str = "TCP") -> JsonObject:
    return {"port": number, "protocol": protocol}
