"""Writes deletion costs to worker pods. A hint for Kubernetes: what cannot be written is logged and no more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from synapse_operator import naming
from synapse_operator.cluster.client import MERGE_PATCH, Client, path
from synapse_operator.deletion_costs import Cost
from synapse_operator.errors import ApiNotFound, ApiRefused, ApiUnavailable

_log = logging.getLogger(__name__)


async def write_costs(client: Client, namespace: str, costs: Sequence[Cost]) -> None:
    """Have pods cost what `costs` say; a pod that is gone needs none."""
    await asyncio.gather(*(_write(client, namespace, cost) for cost in costs))


async def _write(client: Client, namespace: str, cost: Cost) -> None:
    value = None if cost.jobs is None else str(cost.jobs)
    try:
        await client.request(
            "PATCH",
            path("v1", namespace, "pods", cost.pod),
            query={"fieldManager": naming.FIELD_MANAGER},
            body={"metadata": {"annotations": {naming.DELETION_COST_ANNOTATION: value}}},
            content_type=MERGE_PATCH,
        )
    except ApiNotFound:
        return
    except (ApiRefused, ApiUnavailable) as error:
        _log.info("the deletion cost of pod %s/%s could not be written: %s", namespace, cost.pod, error)
