"""spec.observability: where traces go, and who may read the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from synapse_operator.api.common import ApiModel, SecretKeySelector, rule

ENDPOINT_MAX_LENGTH = 512


class PodMonitorSpec(ApiModel):
    """A PodMonitor for the Prometheus Operator."""

    enabled: bool = Field(
        default=False,
        description=(
            "Whether the scale has a PodMonitor, so that a Prometheus Operator finds the workers, the V2 API and "
            "their token. "
            "Where the cluster does not know the kind, the condition ChildrenApplied says KindAbsent. Default: false."
        ),
    )
    labels: Mapping[str, Annotated[str, Field(max_length=63, description="Value of the label.")]] = Field(
        default={},
        max_length=16,
        description=(
            "Labels by which a Prometheus selects its PodMonitors, for example `release: kube-prometheus-stack`. "
            "Default: none."
        ),
    )


class ObservabilitySpec(ApiModel):
    """Traces and metrics of the workers and of the V2 API."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    # The default of the whole is judged without the defaults in it.
                    "(has(self.metricsAuth) && self.metricsAuth == 'SecretRef') == has(self.metricsTokenSecretRef)",
                    "observability: metricsTokenSecretRef is given with metricsAuth SecretRef, and only with that",
                ),
                rule(
                    "!has(self.otlpHeadersSecretRef) || has(self.otlpEndpoint)",
                    "observability: otlpHeadersSecretRef needs otlpEndpoint; without one nothing is sent",
                ),
            ]
        }
    )

    otlp_endpoint: str | None = Field(
        default=None,
        min_length=1,
        max_length=ENDPOINT_MAX_LENGTH,
        description=(
            "Collector that takes traces by OTLP over gRPC: `http://otel-collector:4317` (plain, port 4317 unless "
            "given) or `https://api.honeycomb.io` (TLS, port 443 unless given), without path, user and password; 1 to "
            f"{ENDPOINT_MAX_LENGTH} characters. Unset: no traces."
        ),
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "self.matches('^https?://[^/?#@]+/?$')",
                    "observability: otlpEndpoint is http://host:4317 (plain) or https://host (TLS), without path, user "
                    "and password; keys of a hosted collector belong into the Secret of otlpHeadersSecretRef",
                )
            ]
        },
    )
    otlp_headers_secret_ref: SecretKeySelector | None = Field(
        default=None,
        description=(
            "Key of a Secret that holds what a hosted collector wants to be sent with each call, as in "
            "OTEL_EXPORTER_OTLP_HEADERS: `x-honeycomb-team=KEY`, comma-separated for several. Unset: nothing."
        ),
    )
    metrics_auth: Literal["Generated", "SecretRef", "None"] = Field(
        default="Generated",
        description=(
            "Who may read the metrics of the workers and of the V2 API. Generated: who has the token that the operator "
            "makes once, in the Secret `<scale>-metrics-token-<hash>` under the key `token`. SecretRef: who has the "
            "token of metricsTokenSecretRef. None: everybody who reaches the port. Default: Generated."
        ),
    )
    metrics_token_secret_ref: SecretKeySelector | None = Field(
        default=None,
        description="Key of a Secret that holds the bearer token, for metricsAuth SecretRef. No default.",
    )
    pod_monitor: PodMonitorSpec = Field(
        default_factory=PodMonitorSpec,
        description="A PodMonitor for the Prometheus Operator. Default: none.",
        json_schema_extra={"default": {}},
    )
