"""Writes the finalizers of SynapseTenants; which they are to have is decided in `tenant_drains`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from synapse_operator import naming
from synapse_operator.api.common import ObjectMeta
from synapse_operator.cluster.client import MERGE_PATCH, Client, path
from synapse_operator.cluster.rate import Rate
from synapse_operator.cluster.report import TENANT_WRITES_PER_SECOND
from synapse_operator.errors import ApiNotFound, ApiRefused


class Finalizers:
    """Writes finalizers under a rate of its own, since a thousand tenants may get one at once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._rate = Rate(TENANT_WRITES_PER_SECOND)

    async def write(self, wanted: Iterable[tuple[ObjectMeta, tuple[str, ...]]]) -> tuple[bool, ApiRefused | None]:
        """Give each tenant its finalizers; one that is refused keeps no other from them.

        Returns:
            Whether all have them, False = somebody wrote one meanwhile; and the first refusal, None = there was none.

        Raises:
            ApiUnavailable: not all could be written.
        """
        answers = await asyncio.gather(*(self._write(metadata, names) for metadata, names in wanted))
        refused = [answer for answer in answers if isinstance(answer, ApiRefused)]
        return all(answer is not False for answer in answers), refused[0] if refused else None

    async def _write(self, metadata: ObjectMeta, names: tuple[str, ...]) -> bool | ApiRefused:
        await self._rate.turn()
        # A list is replaced as a whole, so only in the version that was read.
        body = {
            "metadata": {
                "uid": metadata.uid,
                "resourceVersion": metadata.resource_version,
                "finalizers": list(names) or None,
            }
        }
        target = path(naming.API_VERSION, metadata.namespace, naming.TENANT_PLURAL, metadata.name)
        try:
            await self._client.request("PATCH", target, body=body, content_type=MERGE_PATCH)
        except ApiNotFound:
            return True
        except ApiRefused as error:
            return False if error.status == 409 else error
        return True
