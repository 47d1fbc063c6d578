"""What the user is told: conditions, figures, and the Events that their transitions deserve.

Every condition is judged afresh from what was observed and what became of the plan; the previous status only
lends its transition times, and its figures while new ones are not due. The result is the whole status or None,
never a part: it is sent as one server-side apply to the status subresource, which removes what is absent here.

Messages say what is wrong and what to do. They may hold text from a pod or from the API server, so all of them
pass through `_Redactor`, which takes out the secrets that we know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, ObjectMeta
from synapse_operator.api.reasons import ConditionType, EventReason, Reason
from synapse_operator.api.scale import (
    EVENT_TTL,
    MAX_SHARD_ENTRIES,
    MAX_SYNC_ERRORS,
    MAX_SYNC_MESSAGE,
    RUN_DAYS,
    InvalidScale,
    SynapseScale,
    SynapseScaleStatus,
)
from synapse_operator.api.tier import MAX_KEY_ERROR, MAX_KEY_ERRORS
from synapse_operator.api.workers import CONCURRENCY, JOB_TIMEOUT, MAX_RETRIES, AutoscalingSpec
from synapse_operator.api_keys import KeyEntries, not_taken
from synapse_operator.conditions import ConditionStatus as _Status
from synapse_operator.conditions import by_type, condition, unless_same, with_old_message
from synapse_operator.desired.api import api_deployment_of
from synapse_operator.desired.environment import S3_BUCKET
from synapse_operator.desired.model import Blocked, Desired
from synapse_operator.desired.shards import Shard, ShardState, deployment_of, queues_of
from synapse_operator.naming import Kind
from synapse_operator.observed import (
    Child,
    Found,
    NotTried,
    Observed,
    PodProblemKind,
    PostgresAnswers,
    RedisAnswers,
    Rollout,
    SecretMissing,
    SyncOutcome,
    TopologyRecord,
    Unknown,
    Unreachable,
    Unusable,
)
from synapse_operator.plan import ApplyReport, Event
from synapse_worker.contract import BY_NAME, MAX_SHARDS
from synapse_worker.sync.documents import Problem

FIGURES_EVERY = timedelta(seconds=15)
"""Shortest time between two statuses of a scale that differ in figures or messages only (kubelet alternates between
two for one trouble); transitions are written at once. The default of the operator's setting STATUS_FIGURES_SECONDS."""

MINIMUM_REDIS = (6, 2)
SAFE_EVICTION_POLICY = "noeviction"

SHARDS_PER_MASTER = 4
"""Keys are spread over a cluster's masters by chance; with so many, hardly one is left out."""

MAX_UNSERVED = 1024
"""Names in `unservedQueues`, as the CRD bounds them."""

_SHORTEST_SECRET = 4
"""Shorter ones are not taken out: each occurrence of such a text would be starred, and tell what it is."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    type: ConditionType
    status: _Status
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class _Problem:
    """Why a scale is not ready; `stalled` = waiting does not help."""

    reason: Reason
    message: str
    stalled: bool


def figures_due(written_at: datetime | None, now: datetime, every: timedelta = FIGURES_EVERY) -> bool:
    """Return whether a status may be written for the sake of its figures.

    Args:
        written_at: when this process last wrote one while they were due; None = never.
        now: the present time.
        every: the shortest time between two.
    """
    return written_at is None or now - written_at >= every


def next_status(
    scale: SynapseScale,
    desired: Desired | Blocked,
    observed: Observed,
    report: ApplyReport,
    *,
    previous: JsonObject,
    now: datetime,
    figures: bool,
) -> JsonObject | None:
    """Return the status to be written, or None when the previous one still says it all.

    Args:
        scale: the scale.
        desired: what it should have.
        observed: what was there before the plan was carried out.
        report: what became of the plan.
        previous: the stored status ({} = none).
        now: the present time, UTC; used for transition times only.
        figures: whether figures are due (`figures_due`); if not, the previous ones stay, unless they became
            known or unknown, and so do messages of conditions that say the same for the same reason.
    """
    deployments = [child for child in observed.of_kind(Kind.DEPLOYMENT) if not child.terminating]
    rollouts = [Rollout.of(child) for child in deployments if not is_api(child)]
    of_the_api = [Rollout.of(child) for child in deployments if is_api(child)]
    ready = sum(rollout.ready for rollout in rollouts)
    wanted = desired.workers if isinstance(desired, Desired) else sum(rollout.wanted for rollout in rollouts)
    applied = _children_applied(scale, desired, report, [*rollouts, *of_the_api])
    api = _api_ready(scale, observed)
    problem = _problem(scale, desired, observed, report, applied, ready, wanted) or _problem_of_the_api(api)
    settled = all(rollout.complete for rollout in of_the_api) and len(of_the_api) == int(scale.spec.api.enabled)
    moving = not scale.metadata.paused and _moving(desired, report, rollouts, others_settled=settled)
    redact = _Redactor(observed)
    verdicts = (
        _ready(scale, desired, observed, problem, ready, wanted),
        _reconciling(problem, moving, _draining(desired, observed), ready, wanted, applied),
        _stalled(problem),
        _redis_reachable(observed),
        _redis_safe(observed, scale.spec.queue.shards),
        _postgres_reachable(observed),
        _backend_exclusive(scale, observed),
        applied,
        _definitions_synced(scale, observed, previous, redact),
        _storage_shared(scale, observed, wanted),
        api,
        _paused(scale.metadata),
    )
    status: JsonObject = {
        **_head(scale.metadata, verdicts, previous, now, redact),
        "replicas": max((rollout.total for rollout in rollouts), default=0),
        "selector": naming.selector_text(naming.worker_selector(scale.metadata.name)),
        "workers": {"desired": wanted, "ready": ready, "summary": f"{ready}/{wanted}", **_worker_figures(observed)},
    }
    if queue := _queue_figures(observed):
        status["queue"] = queue
    if (sync := _sync_figures(scale, observed.sync, previous, redact)) is not None:
        status["sync"] = sync
    if isinstance(desired, Desired):
        status["shards"] = [_shard(scale, shard, observed) for shard in desired.shards[:MAX_SHARD_ENTRIES]]
        if unserved := _unserved(desired, observed):
            status["unservedQueues"] = unserved
    elif "shards" in previous:
        status["shards"] = previous["shards"]
    if effective := _effective(scale, observed):
        status["effective"] = effective
    if scale.spec.api.enabled:
        status["api"] = _api_figures(scale, observed, previous, redact)
    elif isinstance(observed.keys_left, Unknown) and "api" in previous:
        status["api"] = previous["api"]  # its keys are to be revoked still, which is known from here
    image = desired.image if isinstance(desired, Desired) else previous.get("image")
    if image is not None:
        status["image"] = image
    return _unless_same(status if figures else _with_figures_of(previous, status), previous)


def invalid_status(invalid: InvalidScale, *, previous: JsonObject, now: datetime) -> JsonObject | None:
    """Return the status of a stored object that cannot be read, or None when it stands there already."""
    verdicts = (
        _Verdict(ConditionType.READY, _Status.FALSE, Reason.INVALID_SPEC, invalid.sentence),
        _Verdict(ConditionType.RECONCILING, _Status.FALSE, Reason.SETTLED, "Nothing is under way"),
        _Verdict(ConditionType.STALLED, _Status.TRUE, Reason.INVALID_SPEC, invalid.sentence),
        *(
            _Verdict(type_, _Status.UNKNOWN, Reason.NOT_TRIED, "The spec cannot be read")
            for type_ in (
                ConditionType.REDIS_REACHABLE,
                ConditionType.REDIS_SAFE,
                ConditionType.POSTGRES_REACHABLE,
                ConditionType.DEFINITIONS_SYNCED,
                ConditionType.BACKEND_EXCLUSIVE,
                ConditionType.STORAGE_SHARED,
                ConditionType.API_READY,
            )
        ),
        _Verdict(
            ConditionType.CHILDREN_APPLIED,
            _Status.UNKNOWN,
            Reason.FROZEN,
            "Children are left as they are until the spec is repaired",
        ),
        _paused(invalid.metadata),
    )
    keys = ("replicas", "selector", "workers", "shards", "effective", "image", "sync", "api")
    kept: JsonObject = {key: previous[key] for key in keys if key in previous}
    return _unless_same({**_head(invalid.metadata, verdicts, previous, now, None), **kept}, previous)


def transition_events(previous: JsonObject, status: JsonObject) -> tuple[Event, ...]:
    """Return the Events that the step from one status to the next deserves, one for each transition."""
    events = []
    before, after = by_type(previous), by_type(status)
    was, now = before.get(ConditionType.READY, {}), after[ConditionType.READY]
    if now["status"] == _Status.TRUE:
        if was.get("status") != _Status.TRUE:
            events.append(Event("Normal", EventReason.BECAME_READY, now["message"]))
    elif was.get("reason") != now["reason"] and now["reason"] != Reason.WORKERS_NOT_READY:
        events.append(Event("Warning", EventReason.NOT_READY, f"{now['reason']}: {now['message']}"))
    was, now = before.get(ConditionType.REDIS_SAFE, {}), after[ConditionType.REDIS_SAFE]
    if now["status"] == _Status.FALSE and was.get("reason") != now["reason"]:
        events.append(Event("Warning", EventReason.REDIS_UNSAFE, now["message"]))
    was, now = before.get(ConditionType.DEFINITIONS_SYNCED, {}), after[ConditionType.DEFINITIONS_SYNCED]
    if now["status"] == _Status.FALSE and was.get("reason") != now["reason"]:
        events.append(Event("Warning", EventReason.NOT_SYNCED, now["message"]))
    was, now = before.get(ConditionType.BACKEND_EXCLUSIVE, {}), after[ConditionType.BACKEND_EXCLUSIVE]
    if now["status"] == _Status.FALSE and was.get("status") != _Status.FALSE:
        events.append(Event("Warning", EventReason.BACKEND_SHARED, now["message"]))
    return tuple(events)


# ---- conditions


def _storage_shared(scale: SynapseScale, observed: Observed, wanted: int) -> _Verdict:
    type_ = ConditionType.STORAGE_SHARED
    if scale.spec.storage.s3 is not None:
        return _Verdict(type_, _Status.TRUE, Reason.BUCKET_CONFIGURED, "Vault files and run logs are in a bucket")
    if not isinstance(observed.stored, Unknown) and observed.stored.get(BY_NAME[S3_BUCKET].stored or ""):
        message = "Vault files and run logs are in the bucket of the stored settings"
        return _Verdict(type_, _Status.TRUE, Reason.BUCKET_CONFIGURED, message)
    if wanted <= 1:
        message = "One worker at most keeps vault files and run logs on its own disk, until its pod goes"
        return _Verdict(type_, _Status.TRUE, Reason.SINGLE_WORKER, message)
    if isinstance(observed.stored, Unknown):
        message = "PostgreSQL, which may hold S3 settings, cannot be asked"
        return _Verdict(type_, _Status.UNKNOWN, Reason.POSTGRES_UNREACHABLE, message)
    message = (
        f"{wanted} workers keep vault files and run logs each on its own disk: a file that one writes no other sees,"
        " and it goes with the pod; give spec.storage.s3"
    )
    return _Verdict(type_, _Status.FALSE, Reason.LOCAL_DISK, message)


def _paused(metadata: ObjectMeta) -> _Verdict:
    type_ = ConditionType.PAUSED
    if metadata.paused:
        message = f"Children are left alone while the annotation {naming.PAUSED_ANNOTATION} is there"
        return _Verdict(type_, _Status.TRUE, Reason.PAUSED_BY_ANNOTATION, message)
    return _Verdict(type_, _Status.FALSE, Reason.NOT_PAUSED, "Children are kept as they should be")


def _children_applied(
    scale: SynapseScale, desired: Desired | Blocked, report: ApplyReport, rollouts: list[Rollout]
) -> _Verdict:
    type_ = ConditionType.CHILDREN_APPLIED
    if isinstance(desired, Blocked):
        message = f"Children are left as they are: {desired.sentence}"
        return _Verdict(type_, _Status.UNKNOWN, Reason.FROZEN, message)
    if scale.metadata.paused:
        message = "Children are not compared with the spec while it is paused"
        return _Verdict(type_, _Status.UNKNOWN, Reason.PAUSED_BY_ANNOTATION, message)
    if report.failures:
        first = report.failures[0]
        return _Verdict(type_, _Status.FALSE, first.reason, f"{first.ref}: {first.sentence}")
    refusal = next((rollout.refusal for rollout in rollouts if rollout.refusal), None)
    if refusal is not None:
        reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in refusal else Reason.REFUSED
        return _Verdict(type_, _Status.FALSE, reason, f"pods cannot be created: {refusal}")
    return _Verdict(type_, _Status.TRUE, Reason.APPLIED, "Every object is as it should be")


def _problem(
    scale: SynapseScale,
    desired: Desired | Blocked,
    observed: Observed,
    report: ApplyReport,
    applied: _Verdict,
    ready: int,
    wanted: int,
) -> _Problem | None:
    """Return the first thing that keeps the scale from being ready: causes before their consequences."""
    if isinstance(desired, Blocked):
        # Only reading a Secret is repeated by itself; all else that blocks waits for somebody.
        return _Problem(desired.reason, desired.sentence, stalled=desired.reason is not Reason.SECRET_UNREADABLE)
    if applied.status is _Status.FALSE:
        stalled = applied.reason is not Reason.CLUSTER_UNAVAILABLE
        return _Problem(applied.reason, _with_advice(applied), stalled)
    if report.flip_failure:
        return _Problem(Reason.TOPOLOGY_NOT_WRITTEN, report.flip_failure, stalled=False)
    if isinstance(observed.redis, Unreachable):
        return _Problem(Reason.REDIS_UNREACHABLE, _unreachable(observed.redis), stalled=False)
    if isinstance(observed.postgres, Unreachable):
        return _Problem(Reason.POSTGRES_UNREACHABLE, _unreachable(observed.postgres), stalled=False)
    if wanted and (hindered := observed.pod_problem):
        reason, advice, stalled = _POD_PROBLEMS[hindered.kind]
        return _Problem(reason, f"{hindered.sentence}; {advice}", stalled)
    if any(_ready_in(scale, shard, observed) < _promised(shard) for shard in desired.shards):
        return _Problem(Reason.WORKERS_NOT_READY, f"{ready} of {wanted} workers are ready", stalled=False)
    return None


def _ready_in(scale: SynapseScale, shard: Shard, observed: Observed) -> int:
    child = deployment_of(scale, observed, shard.name)
    return 0 if child is None else Rollout.of(child).ready


def _promised(shard: Shard) -> int:
    """Return how many workers of a shard must be ready: of those that its load asks for, what the spec promises."""
    autoscaling = shard.workers.autoscaling
    if autoscaling.mode == "Off":
        return shard.replicas
    least = autoscaling.min_replicas if autoscaling.mode == "BuiltIn" else 1
    return min(shard.replicas, max(1, least))


_POD_PROBLEMS = {
    PodProblemKind.UNSCHEDULABLE: (Reason.UNSCHEDULABLE, "add nodes or free some, or lower workers.replicas", False),
    PodProblemKind.IMAGE: (Reason.IMAGE_PULL_FAILED, "check image, imagePullPolicy and imagePullSecrets", True),
    PodProblemKind.CONFIGURATION: (
        Reason.POD_CONFIG_ERROR,
        "check that the image runs as a numeric user other than 0 and that the Secrets exist",
        True,
    ),
    PodProblemKind.CRASH: (Reason.CRASH_LOOP, "read its log with `kubectl logs --previous`", True),
}

_ADVICE = {
    Reason.QUOTA_EXCEEDED: "raise the ResourceQuota, or lower workers.replicas",
    Reason.REFUSED: "change what the message names, or the policy that refuses it",
    Reason.KIND_ABSENT: "the cluster does not know the kind: PodMonitors come with the Prometheus Operator (or leave "
    "observability.podMonitor out), all other kinds with a newer cluster",
}


def _with_advice(verdict: _Verdict) -> str:
    advice = _ADVICE.get(verdict.reason)
    return f"{verdict.message}; {advice}" if advice else verdict.message


def _unreachable(state: Unreachable) -> str:
    return f"{state.sentence}; check that it runs, and the URL; no worker is taken for idle meanwhile"


def _moving(desired: Desired | Blocked, report: ApplyReport, rollouts: list[Rollout], *, others_settled: bool) -> bool:
    """Whether something was written just now or Kubernetes is not yet through with it."""
    if isinstance(desired, Blocked):
        return False
    settled = all(shard.state is ShardState.ACTIVE for shard in desired.shards) and desired.flip is None
    deployed = len(rollouts) == len(desired.shards) and all(rollout.complete for rollout in rollouts)
    return bool(report.applied) or not (settled and deployed and others_settled)


def _ready(
    scale: SynapseScale,
    desired: Desired | Blocked,
    observed: Observed,
    problem: _Problem | None,
    ready: int,
    wanted: int,
) -> _Verdict:
    type_ = ConditionType.READY
    if problem is not None:
        return _Verdict(type_, _Status.FALSE, problem.reason, problem.message)
    if not scale.spec.enabled:
        rest = "no work is left" if observed.idle is True else "workers finish what is left"
        return _Verdict(type_, _Status.TRUE, Reason.DISABLED, f"Scale mode is off; {rest}")
    if wanted == 0:
        return _Verdict(type_, _Status.TRUE, Reason.SCALED_TO_ZERO, _why_none(scale.spec.workers.autoscaling))
    return _Verdict(type_, _Status.TRUE, Reason.WORKERS_READY, f"{min(ready, wanted)} of {wanted} workers are ready")


def _why_none(autoscaling: AutoscalingSpec) -> str:
    if autoscaling.mode == "External":
        return "No worker is wanted by whoever scales the Deployments (workers.autoscaling.mode is External); jobs wait"
    if autoscaling.mode == "Off":
        return "No worker is wanted (workers.replicas is 0); jobs wait"
    if autoscaling.paused:
        return "There is no worker, and workers.autoscaling.paused keeps it so; jobs wait"
    return "No worker is wanted, since there is nothing to do; the next job brings one"


def _draining(desired: Desired | Blocked, observed: Observed) -> str:
    """Return what the removal of shards waits for, as a sentence; "" = none is being removed."""
    shards = [] if isinstance(desired, Blocked) else [s for s in desired.shards if s.state is ShardState.DRAINING]
    if not shards:
        return ""
    names = ", ".join(shard.name for shard in shards)
    if isinstance(observed.queues, Unknown) or isinstance(observed.behind, Unknown):
        return f"Shards {names} stay until both stores answer"
    if observed.behind:
        return f"Shards {names} stay until these producers have heard of it: {', '.join(observed.behind[:10])}"
    jobs = sum(each.queued + each.active for shard in shards for each in queues_of(shard.name, observed).values())
    return f"Shards {names} work off what they hold: {jobs} job{'' if jobs == 1 else 's'}"


def _reconciling(
    problem: _Problem | None, moving: bool, draining: str, ready: int, wanted: int, applied: _Verdict
) -> _Verdict:
    type_ = ConditionType.RECONCILING
    if problem is not None and problem.stalled:
        return _Verdict(type_, _Status.FALSE, Reason.SETTLED, "Nothing is under way; see Stalled")
    if applied.status is _Status.FALSE:
        return _Verdict(type_, _Status.TRUE, Reason.APPLYING, f"It is tried again: {applied.message}")
    if moving and draining:
        return _Verdict(type_, _Status.TRUE, Reason.DRAINING, draining)
    if moving:
        return _Verdict(type_, _Status.TRUE, Reason.ROLLING_OUT, f"{ready} of {wanted} workers are ready")
    return _Verdict(type_, _Status.FALSE, Reason.SETTLED, "Nothing is under way")


def _stalled(problem: _Problem | None) -> _Verdict:
    type_ = ConditionType.STALLED
    if problem is not None and problem.stalled:
        return _Verdict(type_, _Status.TRUE, problem.reason, problem.message)
    return _Verdict(type_, _Status.FALSE, Reason.NOTHING_TO_DO, "Nothing needs attention")


def _redis_reachable(observed: Observed) -> _Verdict:
    type_, state = ConditionType.REDIS_REACHABLE, observed.redis
    if isinstance(state, RedisAnswers):
        return _Verdict(type_, _Status.TRUE, Reason.REACHABLE, f"Redis {state.version} answers".replace("  ", " "))
    if isinstance(state, Unreachable):
        return _Verdict(type_, _Status.FALSE, Reason.REDIS_UNREACHABLE, _unreachable(state))
    if isinstance(state, Unusable):
        return _Verdict(type_, _Status.FALSE, Reason.REDIS_UNUSABLE, state.sentence)
    return _Verdict(type_, _Status.UNKNOWN, Reason.NOT_TRIED, f"Redis was not asked: {state.sentence}")


def _postgres_reachable(observed: Observed) -> _Verdict:
    type_, state = ConditionType.POSTGRES_REACHABLE, observed.postgres
    if isinstance(state, PostgresAnswers):
        tables = "" if state.schema_version is not None else "; the first worker that starts creates its tables"
        return _Verdict(type_, _Status.TRUE, Reason.REACHABLE, f"PostgreSQL answers{tables}")
    if isinstance(state, Unreachable):
        return _Verdict(type_, _Status.FALSE, Reason.POSTGRES_UNREACHABLE, _unreachable(state))
    if isinstance(state, Unusable):
        return _Verdict(type_, _Status.FALSE, Reason.POSTGRES_UNUSABLE, state.sentence)
    return _Verdict(type_, _Status.UNKNOWN, Reason.NOT_TRIED, f"PostgreSQL was not asked: {state.sentence}")


def _backend_exclusive(scale: SynapseScale, observed: Observed) -> _Verdict:
    type_, owner = ConditionType.BACKEND_EXCLUSIVE, observed.redis_owner
    if isinstance(owner, Unknown):
        return _Verdict(type_, _Status.UNKNOWN, Reason.NOT_TRIED, f"Redis could not be marked: {owner.sentence}")
    store = "Redis"
    row = observed.topology
    if owner == scale.metadata.uid:
        if not isinstance(row, TopologyRecord) or row.is_free_for(owner):
            return _Verdict(type_, _Status.TRUE, Reason.EXCLUSIVE, "No other SynapseScale uses these stores")
        store, owner = "The PostgreSQL database", row.owner_uid
    message = (
        f"{store} is in use by another SynapseScale (UID {owner}), perhaps of another cluster; give each its own. "
        "Where that one is gone, the mark ends within 10 minutes"
    )
    return _Verdict(type_, _Status.FALSE, Reason.BACKEND_SHARED, message)


def _idle_masters(redis: RedisAnswers, shards: int) -> str:
    """Return the advice for a cluster of which few queues leave masters idle; "" = none is needed."""
    wanted = min(SHARDS_PER_MASTER * redis.masters, MAX_SHARDS)
    if shards >= wanted:
        return ""
    return (
        f"; each queue is on one of its {redis.masters} masters: with fewer than {wanted} shards (queue.shards is "
        f"{shards}) some may have nothing to do"
    )


def _redis_safe(observed: Observed, shards: int) -> _Verdict:
    type_, state = ConditionType.REDIS_SAFE, observed.redis
    if not isinstance(state, RedisAnswers):
        why = state.sentence if isinstance(state, NotTried) else "it does not answer as it should"
        return _Verdict(type_, _Status.UNKNOWN, Reason.NOT_TRIED, f"Redis was not asked: {why}")
    if _too_old(state.version):
        needed = ".".join(str(part) for part in MINIMUM_REDIS)
        message = f"Redis {state.version} is too old for the workers; they need {needed} or newer"
        return _Verdict(type_, _Status.FALSE, Reason.REDIS_TOO_OLD, message)
    if state.eviction_policy == SAFE_EVICTION_POLICY:
        message = f"maxmemory-policy is {SAFE_EVICTION_POLICY}: Redis keeps its keys"
        if state.clustered:
            message += "; it is clustered, so no stock arq worker may serve the queues beside ours"
            message += _idle_masters(state, shards)
            return _Verdict(type_, _Status.TRUE, Reason.NO_ARQ_PEERS, message)
        return _Verdict(type_, _Status.TRUE, Reason.NO_EVICTION, message)
    if not state.eviction_policy:
        message = f"Redis does not tell its maxmemory-policy; make sure that it is {SAFE_EVICTION_POLICY}"
        return _Verdict(type_, _Status.UNKNOWN, Reason.EVICTION_POLICY_UNKNOWN, message)
    message = (
        f"maxmemory-policy is {state.eviction_policy}: Redis drops jobs when its memory is full; "
        f"set it to {SAFE_EVICTION_POLICY}"
    )
    return _Verdict(type_, _Status.FALSE, Reason.EVICTION_POLICY, message)


def _definitions_synced(scale: SynapseScale, observed: Observed, previous: JsonObject, redact: _Redactor) -> _Verdict:
    type_, outcome, spec = ConditionType.DEFINITIONS_SYNCED, observed.sync, scale.spec.sync
    if not spec.sources and (outcome is None or not outcome.failure):
        message = "spec.sync names no source: definitions come from a main instance or from `synapse-worker sync`"
        return _Verdict(type_, _Status.TRUE, Reason.NO_SOURCES, message)
    if outcome is None:
        told = by_type(previous).get(type_, {})
        reason = next((each for each in Reason if each == told.get("reason")), None)
        if reason and told.get("observedGeneration") == scale.metadata.generation and "sync" in previous:
            # This process has just begun: what was told of the same sources holds until it knows better.
            return _Verdict(type_, _Status(told["status"]), reason, told["message"])
        if not spec.auto:
            message = f"spec.sync.auto is false: set the annotation {naming.SYNC_NOW_ANNOTATION} to a new value to sync"
            return _Verdict(type_, _Status.UNKNOWN, Reason.SYNC_NOT_ASKED, message)
        return _Verdict(type_, _Status.UNKNOWN, Reason.SYNC_PENDING, _why_pending(observed))
    if outcome.failure:
        message = f"The sync ended early and is tried again: {outcome.failure}"
        return _Verdict(type_, _Status.FALSE, Reason.SYNC_FAILED, message)
    count = len(spec.sources)
    total = f"{outcome.total} definitions and settings of {count} source{'' if count == 1 else 's'} are synced"
    if not outcome.problems:
        return _Verdict(type_, _Status.TRUE, Reason.SYNCED, total)
    reason = Reason.DOCUMENTS_REFUSED
    if outcome.not_found or outcome.unreadable:
        reason = Reason.SOURCE_NOT_FOUND if outcome.not_found else Reason.SOURCE_UNREADABLE
    # Objects that could not be read come first, so the sentence is about the reason.
    number, first = len(outcome.problems), _clip(redact(str(outcome.problems[0])))
    errors = f"{number} error{'' if number == 1 else 's'}, see status.sync.errors; the first"
    return _Verdict(type_, _Status.FALSE, reason, f"{total}; {errors}: {first}")


def is_api(child: Child) -> bool:
    """Whether a Deployment is the V2 API's, and no workers."""
    return (child.raw["metadata"].get("labels") or {}).get(naming.ROLE_LABEL) == naming.API_ROLE


def _api_ready(scale: SynapseScale, observed: Observed) -> _Verdict:
    type_, spec, keys = ConditionType.API_READY, scale.spec.api, observed.api_keys
    if not spec.enabled:
        return _Verdict(type_, _Status.TRUE, Reason.API_OFF, "spec.api.enabled is false")
    if isinstance(keys, SecretMissing):
        return _Verdict(type_, _Status.FALSE, Reason.SECRET_NOT_FOUND, f"api.keysSecretRef: {keys.sentence}")
    if isinstance(keys, Unknown):
        return _Verdict(type_, _Status.FALSE, Reason.SECRET_UNREADABLE, f"api.keysSecretRef: {keys.sentence}")
    child = api_deployment_of(scale, observed)
    ready = 0 if child is None else Rollout.of(child).ready
    message = f"{min(ready, spec.replicas)} of {spec.replicas} pods of the V2 API are ready"
    if ready < spec.replicas:
        return _Verdict(type_, _Status.FALSE, Reason.API_NOT_READY, message)
    if problems := _key_problems(observed):
        number = len(problems)
        errors = (
            f"{number} error{'' if number == 1 else 's'} in the Secret of keys, see status.api.keyErrors; the first"
        )
        return _Verdict(type_, _Status.FALSE, Reason.API_KEYS_REFUSED, f"{message}; {errors}: {problems[0]}")
    return _Verdict(type_, _Status.TRUE, Reason.API_SERVES, message)


def _problem_of_the_api(verdict: _Verdict) -> _Problem | None:
    if verdict.status is not _Status.FALSE:
        return None
    stalled = verdict.reason in (Reason.SECRET_NOT_FOUND, Reason.API_KEYS_REFUSED)
    return _Problem(verdict.reason, verdict.message, stalled)


def _key_problems(observed: Observed) -> tuple[str, ...]:
    if not isinstance(observed.api_keys, KeyEntries):
        return ()
    left = () if isinstance(observed.keys_left, Unknown) else tuple(observed.keys_left)
    return (*observed.api_keys.problems, *not_taken(observed.api_keys, left))


def _api_figures(scale: SynapseScale, observed: Observed, previous: JsonObject, redact: _Redactor) -> JsonObject:
    child, spec = api_deployment_of(scale, observed), scale.spec.api
    told: JsonObject = {
        "desired": spec.replicas,
        "ready": 0 if child is None else Rollout.of(child).ready,
        "service": naming.api_name(scale.metadata.name),
        "port": spec.service.port,
    }
    if isinstance(observed.api_keys, KeyEntries) and not isinstance(observed.keys_left, Unknown):
        told["keys"] = len(observed.api_keys.keys) - len(observed.keys_left)
    elif isinstance(observed.keys_left, Unknown) and "keys" in (previous.get("api") or {}):
        told["keys"] = previous["api"]["keys"]  # they stay as they are
    if problems := _key_problems(observed):
        told["keyErrors"] = [redact(problem)[:MAX_KEY_ERROR] for problem in problems[:MAX_KEY_ERRORS]]
    return told


def _why_pending(observed: Observed) -> str:
    state = observed.postgres
    if not isinstance(state, PostgresAnswers):
        return f"The sync waits for PostgreSQL: {state.sentence}"
    if state.schema_version is None:
        return "The sync waits for the first worker, which creates or completes the tables in PostgreSQL"
    return "The sync is under way"


def _too_old(version: str) -> bool:
    """Whether a version is known to be older than what the workers need."""
    parts = version.split(".")[: len(MINIMUM_REDIS)]
    return all(part.isdecimal() for part in parts) and tuple(int(part) for part in parts) < MINIMUM_REDIS


# ---- figures


def _worker_figures(observed: Observed) -> JsonObject:
    if isinstance(observed.overview, Unknown):
        return {}
    return {"capacity": observed.overview.slots, "active": observed.overview.active_jobs}


def _queue_figures(observed: Observed) -> JsonObject:
    figures: JsonObject = {}
    queue = observed.queue
    if not isinstance(queue, Unknown):
        figures |= {"queued": queue.queued, "active": queue.active, "parked": queue.parked}
        if queue.oldest_seconds is not None:
            figures["oldestSeconds"] = max(0, int(queue.oldest_seconds))
    if not isinstance(observed.overview, Unknown):
        figures["deadLettered"] = observed.overview.dead_letters
    return figures


def _sync_figures(
    scale: SynapseScale, outcome: SyncOutcome | None, previous: JsonObject, redact: _Redactor
) -> JsonObject | None:
    """Return `status.sync`; the time stays while a sync writes nothing and finds what the one before found."""
    old: JsonObject | None = previous.get("sync")
    if outcome is None or outcome.failure:
        return old
    if not scale.spec.sync.sources:
        return None
    new: JsonObject = {"totalSynced": outcome.total}
    if outcome.problems:
        new["errors"] = [_sync_error(problem, redact) for problem in outcome.problems[:MAX_SYNC_ERRORS]]
    if outcome.asked is not None:
        new["syncNow"] = outcome.asked
    at = outcome.at.strftime("%Y-%m-%dT%H:%M:%SZ")
    if old and not outcome.written and {**old, "lastSyncTime": ""} == {**new, "lastSyncTime": ""}:
        at = old["lastSyncTime"]
    return {"lastSyncTime": at, **new}


def _sync_error(problem: Problem, redact: _Redactor) -> JsonObject:
    error: JsonObject = {"source": problem.name}
    if problem.key:
        error["key"] = problem.key
    if problem.line is not None:
        error["line"] = problem.line
    return {**error, "message": _clip(redact(problem.sentence))}


def _clip(text: str) -> str:
    """Return what fits into the schema, and no half of a surrogate pair: the API server would replace it."""
    return text.encode(errors="replace").decode()[:MAX_SYNC_MESSAGE]


def _shard(scale: SynapseScale, shard: Shard, observed: Observed) -> JsonObject:
    pool = scale.spec.pool_of(int(shard.name)) if shard.name.isdecimal() else None
    told: JsonObject = {
        "name": shard.name,
        "queue": ",".join(shard.serves),
        "desired": shard.replicas,
        "ready": _ready_in(scale, shard, observed),
        "state": str(shard.state),
    }
    if pool is not None:
        told["pool"] = pool.name
    if not isinstance(observed.queues, Unknown):
        figures = queues_of(shard.name, observed).values()
        told |= {"queued": sum(each.queued for each in figures), "active": sum(each.active for each in figures)}
    return told


def _effective(scale: SynapseScale, observed: Observed) -> JsonObject:
    """Return what holds and where it comes from, by the worker's own rule: variable, stored setting, default."""
    workers, retention = scale.spec.workers, scale.spec.retention
    found: JsonObject = {}
    for name, given, variable in (
        ("concurrency", workers.concurrency, CONCURRENCY),
        ("jobTimeoutSeconds", workers.job_timeout_seconds, JOB_TIMEOUT),
        ("maxRetries", workers.max_retries, MAX_RETRIES),
        ("eventTtlSeconds", retention.event_ttl_seconds, EVENT_TTL),
        ("runDays", retention.run_days, RUN_DAYS),
    ):
        if given is not None:
            found[name] = {"value": given, "source": "Spec"}
        elif isinstance(observed.stored, Unknown):
            continue
        elif isinstance(stored := observed.stored.get(variable.stored or ""), int):
            found[name] = {"value": stored, "source": "Stored"}
        else:
            found[name] = {"value": int(variable.default or 0), "source": "Default"}
    return found


def _unserved(desired: Desired, observed: Observed) -> list[str]:
    """Return the queues that hold jobs and are to have no worker."""
    served = {name for shard in desired.shards if shard.replicas for name in queues_of(shard.name, observed)}
    queues = {} if isinstance(observed.queues, Unknown) else observed.queues
    return sorted(name for name, figures in queues.items() if figures.queued and name not in served)[:MAX_UNSERVED]


def _with_figures_of(previous: JsonObject, status: JsonObject) -> JsonObject:
    """Return `status` with the figures and messages of `previous`, as far as nothing else changed."""
    before = by_type(previous)
    merged = {**status, "conditions": [with_old_message(before.get(c["type"], {}), c) for c in status["conditions"]]}
    old, new = previous.get("queue") or {}, status.get("queue") or {}
    if all((key in old) == (key in new) for key in ("queued", "deadLettered")) and old:
        merged["queue"] = old
    before_shards = {shard["name"]: shard for shard in previous.get("shards") or ()}
    if "shards" in status:
        merged["shards"] = [_with_old_counts(before_shards.get(shard["name"], {}), shard) for shard in status["shards"]]
    old, new = previous.get("workers") or {}, status["workers"]
    if "capacity" in old and "capacity" in new:
        merged["workers"] = {**new, **{key: old[key] for key in ("capacity", "active") if key in old}}
    return merged


def _with_old_counts(old: JsonObject, shard: JsonObject) -> JsonObject:
    known = all(key in old and key in shard for key in ("queued", "active"))
    return {**shard, "queued": old["queued"], "active": old["active"]} if known else shard


# ---- form


class _Redactor:
    """Takes the URLs of the stores, their passwords and the S3 keys out of texts that others wrote."""

    def __init__(self, observed: Observed) -> None:
        lookups = (observed.redis_url, observed.postgres_url, *observed.s3_keys.values())
        found = [lookup.value for lookup in lookups if isinstance(lookup, Found)]
        self._secrets = sorted({text for value in found for text in _parts(value)}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _parts(url: SecretStr) -> Iterable[str]:
    """Yield what must not be shown: the URL as a whole, and its password, encoded and decoded."""
    text = url.get_secret_value().strip()
    try:
        password = urlsplit(text).password or ""
    except ValueError:
        password = ""
    return [part for part in (text, password, unquote(password)) if len(part) >= _SHORTEST_SECRET]


def _head(
    metadata: ObjectMeta,
    verdicts: Iterable[_Verdict],
    previous: JsonObject,
    now: datetime,
    redact: _Redactor | None,
) -> JsonObject:
    conditions = [
        condition(
            verdict.type,
            verdict.status,
            verdict.reason,
            redact(verdict.message) if redact else verdict.message,
            generation=metadata.generation,
            previous=previous,
            now=now,
        )
        for verdict in sorted(verdicts, key=lambda verdict: verdict.type)
    ]
    return {"observedGeneration": metadata.generation, "conditions": conditions}


def _unless_same(status: JsonObject, previous: JsonObject) -> JsonObject | None:
    return unless_same(status, previous, model=SynapseScaleStatus, types=set(ConditionType))
