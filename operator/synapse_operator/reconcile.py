"""The order of one reconcile: observe, decide, act, report. What each step knows is in its own module."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pydantic import SecretStr

from synapse_operator import tenants
from synapse_operator.api.common import JsonObject
from synapse_operator.api.overlay import SecretPart
from synapse_operator.api.scale import InvalidScale, SynapseScale, read_scale
from synapse_operator.api.tenant import read_tenant
from synapse_operator.api_keys import KeyEntries
from synapse_operator.autoscale import Recent
from synapse_operator.backends import Backends, Stores, View
from synapse_operator.cluster import apply, metrics_token, observe
from synapse_operator.cluster.client import Client
from synapse_operator.cluster.costs import write_costs
from synapse_operator.cluster.observe import Key, ScaleKey, StoreSecrets, TenantsKey
from synapse_operator.cluster.report import Reporter
from synapse_operator.dedicated import Dedicated
from synapse_operator.deletion_costs import after_a_resize, before_a_resize, shrinking
from synapse_operator.desired import desired_for_scale
from synapse_operator.desired.shards import queues_of, recommendations, serving
from synapse_operator.drains import drained, emptied
from synapse_operator.naming import SCALE_KIND, Kind
from synapse_operator.observed import DedicatedTenant, Observed, SecretLookup, SecretMissing, Unknown
from synapse_operator.plan import plan
from synapse_operator.rest import Rest, Rests, at_rest
from synapse_operator.status import figures_due, invalid_status, next_status
from synapse_operator.syncer import Syncer
from synapse_operator.telemetry import Metrics
from synapse_operator.waves import Waves
from synapse_operator.workqueue import Again


class _Secrets(NamedTuple):
    """All that is read from Secrets, which are not watched; fields as in `observed.Observed`."""

    stores: StoreSecrets
    metrics_token: SecretLookup | None
    otlp_headers: SecretLookup | None
    template: Mapping[SecretPart, SecretStr]
    s3_keys: Mapping[str, SecretLookup]
    api_keys: KeyEntries | SecretMissing | Unknown | None


def _secrets_of(seen: Observed) -> _Secrets:
    stores = StoreSecrets(seen.redis_url, seen.postgres_url, seen.redis_ca, seen.postgres_ca)
    return _Secrets(stores, seen.metrics_token, seen.otlp_headers, seen.template_secrets, seen.s3_keys, seen.api_keys)


class Reconciler:
    """Brings SynapseScales to what their specs say, one call each."""

    def __init__(
        self,
        client: Client,
        backends: Backends,
        syncer: Syncer,
        dedicated: Dedicated,
        rests: Rests,
        metrics: Metrics,
        *,
        worker_image: str,
        hash_key: SecretStr,
        instance: str,
        empty_for: timedelta,
        figures_every: timedelta,
        wake: Callable[[Key, float], None],
    ) -> None:
        """Prepare to reconcile.

        Args:
            client, backends, syncer, dedicated, rests, metrics: what is worked with.
            worker_image: the image where a scale names none.
            hash_key: what URLs are hashed with.
            instance: the name of this process in Events.
            empty_for: time after which an empty queue that producers use no more loses its workers.
            figures_every: shortest time between two statuses of a scale for the sake of their figures.
            wake: has a key looked at in so many seconds.
        """
        self._client = client
        self._backends = backends
        self._syncer = syncer
        self._dedicated = dedicated
        self._rests = rests
        self._metrics = metrics
        self._worker_image = worker_image
        self._hash_key = hash_key
        self._empty_for = empty_for
        self._figures_every = figures_every
        self._reporter = Reporter(client, instance)
        self._wake = wake
        self._figures_at: dict[ScaleKey, datetime] = {}
        self._empty_since: dict[ScaleKey, dict[str, datetime]] = {}
        self._recommended: dict[ScaleKey, dict[str, Recent]] = {}
        self._without_costs: set[ScaleKey] = set()
        self._with_tables: set[ScaleKey] = set()
        self._waves = Waves()

    async def __call__(self, key: ScaleKey) -> Again | None:
        """Reconcile once and say when to look again; None = the scale is gone.

        Raises:
            ApiUnavailable, ApiRefused: the API server could not be asked or told; try again.
        """
        with self._metrics.reconcile(SCALE_KIND):
            now = datetime.now(UTC)
            rest = self._rests.get(key, now)
            if rest is not None and await self._still_rests(key, rest, now):
                return Again(after=rest.rhythm.total_seconds())
            self._rests.begin(key, now)
            stored = await observe.read_stored(self._client, key)
            scale = read_scale(stored) if stored is not None else None
            if stored is None or scale is None or scale.metadata.deletion_timestamp is not None:
                self._forget(key)
                return None
            previous = stored.get("status") or {}
            if isinstance(scale, InvalidScale):
                self._waves.forget(key)
                now = datetime.now(UTC)
                status = invalid_status(scale, previous=previous, now=now)
                await self._reporter.report(scale.metadata, previous, status, (), now)
                return Again()
            return await self._reconcile(key, scale, previous)

    async def _reconcile(self, key: ScaleKey, scale: SynapseScale, previous: JsonObject) -> Again | None:
        observed, view = await self._observe(key, scale, previous)

        now = datetime.now(UTC)
        desired = desired_for_scale(scale, observed, default_image=self._worker_image, hash_key=self._hash_key)
        may_roll = self._waves.may_roll(key, rolling=observed.rolling)
        todo = plan(scale, desired, observed, now, may_roll=may_roll)
        if todo.creates and not await observe.is_there(self._client, scale):
            self._forget(key)
            return None
        if todo.rolls:
            self._waves.begin(key)

        await self._spare_busy_pods(key, scale, observed, shrinking(todo))
        report = await apply.carry_out(self._client, todo)
        if todo.rolls and not observed.rolling and not any(ref.kind is Kind.DEPLOYMENT for ref in report.applied):
            self._waves.forget(key)  # what is refused at each try must not keep other scales waiting
        if todo.flip is not None:
            failure = await self._backends.flip(key, todo.flip, scale.metadata.uid)
            report = replace(report, flip_failure=failure)

        figures = figures_due(self._figures_at.get(key), now, self._figures_every)
        status = next_status(scale, desired, observed, report, previous=previous, now=now, figures=figures)
        done = [step.event for step in todo.resize if step.child.ref in report.applied]
        done += [step.event for step in todo.apply if step.event and step.manifest.ref in report.applied]
        await self._reporter.report(scale.metadata, previous, status, done, now)
        if status is not None and figures:
            self._figures_at[key] = now
        apply.raise_if_unavailable(report)
        rhythm = todo.wake_at - now if todo.wake_at else None
        if (
            rhythm is not None
            and status is None
            and figures
            and at_rest(scale, desired, observed, todo, self._recommended[key], previous)
        ):
            # Their children are not kept: a hundred scales would hold many megabytes of them.
            self._rests.settle(key, Rest(scale, previous, view, replace(observed, children=()), rhythm), now)
        return Again(after=rhythm.total_seconds() if rhythm else None)

    async def _still_rests(self, key: ScaleKey, rest: Rest, now: datetime) -> bool:
        """Ask whether a scale at rest is as it was: its stores, and once a resync what no watch tells.

        A scale whose sources are to be synced again has the sync started.
        """
        scale, observed = rest.scale, rest.observed
        if not await self._backends.is_still(key, rest.view, run_days=scale.spec.retention.run_days):
            return False
        if not self._rests.check_due(key, now, rest.rhythm):
            return True
        secrets = await self._read_secrets(scale, observed.dedicated)
        sync = self._syncer.look(key, scale, rest.view.postgres, rest.previous)
        if (secrets, sync) != (_secrets_of(observed), observed.sync):
            return False
        if not await self._backends.renew(key, scale.metadata.uid, rest.view):
            return False
        self._rests.checked(key, now)
        return True

    async def _spare_busy_pods(
        self, key: ScaleKey, scale: SynapseScale, observed: Observed, shards: Sequence[str]
    ) -> None:
        """Have Kubernetes take idle pods first where there are to be fewer, and take the hint away afterwards."""
        costs = () if scale.metadata.paused else after_a_resize(observed, shrinking=shards)
        if shards:
            queues = [queue for shard in shards for queue in queues_of(shard, observed)]
            held = await self._backends.jobs_held(key, queues)
            if not isinstance(held, Unknown):
                costs += before_a_resize(await observe.read_pods(self._client, scale), shards, held)
        await write_costs(self._client, scale.metadata.namespace, costs)
        if costs:
            self._without_costs.discard(key)

    async def _observe(self, key: ScaleKey, scale: SynapseScale, previous: JsonObject) -> tuple[Observed, View]:
        """Return what there is, and beside it what the stores said."""
        dedicated = await self._dedicated_tenants(key, scale)
        secrets = await self._read_secrets(scale, dedicated)
        stores = Stores(scale.metadata.namespace, *secrets.stores, pgbouncer=scale.spec.postgres.pgbouncer)
        view, children = await asyncio.gather(
            self._backends.look(key, scale.metadata.uid, stores, run_days=scale.spec.retention.run_days),
            observe.read_children(self._client, scale, dedicated),
        )
        # An operator that starts anew looks once for costs that the one before has left.
        look = key not in self._without_costs or observe.pods_matter(children)
        pods = await observe.read_pods(self._client, scale) if look else ()
        if all(pod.deletion_cost is None or pod.terminating for pod in pods):
            self._without_costs.add(key)
        now = datetime.now(UTC)
        self._empty_since[key] = emptied(
            self._empty_since.get(key, {}), topology=view.topology, behind=view.behind, queues=view.queues, now=now
        )
        observed = Observed(
            *secrets.stores,
            redis=view.redis,
            postgres=view.postgres,
            queues=view.queues,
            overview=view.overview,
            redis_owner=view.redis_owner,
            stored=view.stored,
            topology=view.topology,
            behind=view.behind,
            drained=drained(self._empty_since[key], now, self._empty_for),
            children=children,
            pods=pods,
            metrics_token=secrets.metrics_token,
            otlp_headers=secrets.otlp_headers,
            sync=self._syncer.look(key, scale, view.postgres, previous),
            dedicated=dedicated,
            template_secrets=secrets.template,
            s3_keys=secrets.s3_keys,
            api_keys=secrets.api_keys,
            keys_left=await self._keep_keys(key, scale, secrets.api_keys, previous),
        )
        self._dedicated.serve(key, serving(scale, observed))
        if not observed.migrated:
            self._with_tables.discard(key)
        elif key not in self._with_tables:
            self._with_tables.add(key)
            self._wake(TenantsKey(key), 0.0)  # their rows have had to wait
        recent = recommendations(scale, observed, self._recommended.get(key, {}), now)
        self._recommended[key] = recent
        return replace(observed, recommended={name: asked[0].replicas for name, asked in recent.items()}), view

    async def _read_secrets(self, scale: SynapseScale, dedicated: Mapping[str, DedicatedTenant]) -> _Secrets:
        stores, token, otlp_headers = await asyncio.gather(
            observe.read_store_secrets(self._client, scale), self._metrics_token(scale), self._otlp_headers(scale)
        )
        return _Secrets(
            stores,
            token,
            otlp_headers,
            await self._template_secrets(scale, dedicated),
            await observe.read_s3_keys(self._client, scale),
            await observe.read_api_keys(self._client, scale),
        )

    async def _metrics_token(self, scale: SynapseScale) -> SecretLookup | None:
        if scale.spec.observability.metrics_auth == "Generated":
            return await metrics_token.provide(self._client, scale, self._hash_key)
        selector = scale.spec.observability.metrics_token_secret_ref
        if selector is None:
            return None
        return await observe.read_selected(self._client, scale.metadata.namespace, selector, "a token")

    async def _otlp_headers(self, scale: SynapseScale) -> SecretLookup | None:
        selector = scale.spec.observability.otlp_headers_secret_ref
        if selector is None:
            return None
        return await observe.read_selected(self._client, scale.metadata.namespace, selector, "name=value")

    async def _keep_keys(
        self,
        key: ScaleKey,
        scale: SynapseScale,
        wanted: KeyEntries | SecretMissing | Unknown | None,
        previous: JsonObject,
    ) -> frozenset[str] | Unknown:
        """Store the API keys; those of a Secret that is missing or cannot be read stay as they are.

        While the API is served, this is asked without a Secret too: a key of one that is named no more, or of a scale
        that had these stores before, would open it for ever.
        """
        if isinstance(wanted, SecretMissing | Unknown):
            return Unknown(wanted.sentence)
        if wanted is None and not scale.spec.api.enabled and "keys" not in (previous.get("api") or {}):
            return frozenset()
        return await self._backends.keep_keys(key, scale.metadata.uid, () if wanted is None else wanted.keys)

    async def _template_secrets(
        self, scale: SynapseScale, dedicated: Mapping[str, DedicatedTenant]
    ) -> Mapping[SecretPart, SecretStr]:
        own = (tenant.workers.template for tenant in dedicated.values())
        overlays = (*scale.spec.overlays, *(overlay for overlay in own if overlay is not None))
        return await observe.read_template_secrets(self._client, scale.metadata.namespace, overlays)

    async def _dedicated_tenants(self, key: ScaleKey, scale: SynapseScale) -> Mapping[str, DedicatedTenant]:
        known = self._dedicated.wanted(key)
        if known is not None:
            return known
        # An operator that starts anew: what is not known yet must not look like none, or busy workers would go.
        listed = tenants.of_scale(await observe.list_tenants(self._client, key.namespace), key.name)
        return tenants.dedicated(scale, tenants.claims(map(read_tenant, listed)))

    def _forget(self, key: ScaleKey) -> None:
        self._rests.forget(key)
        self._dedicated.forget(key)
        self._waves.forget(key)
        self._with_tables.discard(key)
        self._syncer.forget(key)
        self._backends.forget(key)
        self._figures_at.pop(key, None)
        self._empty_since.pop(key, None)
        self._recommended.pop(key, None)
        self._without_costs.discard(key)
