"""The words of the status: condition types, condition reasons and Event reasons, each with its meaning.

Condition types and their reasons are API: users' alerts and scripts match on them, so one is only ever
added, not renamed. Event reasons are hints for people and may change. docs/crd-reference.md is generated
from this module; the sentences beside the reasons in a status are made in `status`.
"""

from __future__ import annotations

from enum import StrEnum


class _Documented(StrEnum):
    """A word with its documentation."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> _Documented:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class ConditionType(_Documented):
    """Types of conditions of a SynapseScale. All are always present. A SynapseTenant has Ready alone."""

    READY = (
        "Ready",
        (
            "True: as many workers as the spec asks for are ready (of those that autoscaling asks for, minReplicas and "
            "one at least), both stores answer, nothing needs attention"
        ),
    )
    RECONCILING = "Reconciling", "True: the operator or Kubernetes is still carrying out the spec; waiting helps"
    STALLED = "Stalled", "True: waiting does not help; the message says what somebody must change"
    REDIS_REACHABLE = "RedisReachable", "True: the operator reaches Redis with the URL that the workers get"
    REDIS_SAFE = "RedisSafe", "True: Redis is recent enough and set to keep its keys when its memory is full"
    POSTGRES_REACHABLE = "PostgresReachable", "True: the operator reaches PostgreSQL with the URL that the workers get"
    BACKEND_EXCLUSIVE = "BackendExclusive", "True: no other SynapseScale uses the same Redis or the same database"
    CHILDREN_APPLIED = "ChildrenApplied", "True: every object that belongs to the scale is as it should be"
    DEFINITIONS_SYNCED = "DefinitionsSynced", "True: PostgreSQL holds the definitions as the sources of spec.sync say"
    STORAGE_SHARED = "StorageShared", "True: every worker sees the same vault files and run logs"
    API_READY = "ApiReady", "True: the V2 API answers, and has the keys that spec.api.keysSecretRef names; or it is off"
    PAUSED = "Paused", "True: the annotation scale.synapseorch.com/paused is there, and the operator changes nothing"


class Reason(_Documented):
    """Reasons of conditions."""

    # Ready
    WORKERS_READY = "WorkersReady", "every wanted worker is ready"
    SCALED_TO_ZERO = (
        "ScaledToZero",
        "no worker is wanted: spec.workers.replicas is 0, or autoscaling finds nothing to do",
    )
    DISABLED = "Disabled", "spec.enabled is false: workers finish what is queued and go to 0"
    WORKERS_NOT_READY = "WorkersNotReady", "fewer workers than the spec asks for answer their readiness probe"
    # Reconciling
    SETTLED = "Settled", "nothing is under way"
    ROLLING_OUT = "RollingOut", "pods are being created, replaced or removed"
    DRAINING = (
        "Draining",
        "shards that are wanted no more, or a tenant that is being deleted, work off what they hold and go afterwards",
    )
    APPLYING = "Applying", "objects of the scale are still to be written"
    # Stalled
    NOTHING_TO_DO = "NothingToDo", "nothing needs attention"
    INVALID_SPEC = "InvalidSpec", "the stored spec breaks the present schema; children are left as they are"
    SECRET_NOT_FOUND = "SecretNotFound", "a referenced Secret does not exist; children are left as they are"
    SECRET_KEY_NOT_FOUND = (
        "SecretKeyNotFound",
        "a referenced Secret lacks the key, or it is empty; children are left as they are",
    )
    SECRET_UNREADABLE = "SecretUnreadable", "a referenced Secret could not be read; children are left as they are"
    # stores
    REACHABLE = "Reachable", "the store answers"
    REDIS_UNREACHABLE = "RedisUnreachable", "Redis does not answer the operator; no worker is taken for idle meanwhile"
    POSTGRES_UNREACHABLE = (
        "PostgresUnreachable",
        "PostgreSQL does not answer the operator; no worker is taken for idle meanwhile",
    )
    REDIS_UNUSABLE = "RedisUnusable", "the Redis URL is not accepted, or Redis refuses what we need"
    POSTGRES_UNUSABLE = "PostgresUnusable", "the PostgreSQL URL is not accepted, or PostgreSQL refuses what we need"
    NOT_TRIED = "NotTried", "there was no URL to ask with"
    NO_EVICTION = "NoEviction", "maxmemory-policy is noeviction"
    NO_ARQ_PEERS = (
        "NoArqPeers",
        "maxmemory-policy is noeviction, and Redis is clustered: no stock arq worker may serve the queues beside ours",
    )
    EVICTION_POLICY = "EvictionPolicy", "maxmemory-policy lets Redis drop jobs when its memory is full"
    EVICTION_POLICY_UNKNOWN = "EvictionPolicyUnknown", "Redis does not tell its maxmemory-policy"
    REDIS_TOO_OLD = "RedisTooOld", "Redis is older than the workers need"
    EXCLUSIVE = "Exclusive", "Redis and PostgreSQL are marked as this SynapseScale's"
    BACKEND_SHARED = (
        "BackendShared",
        "Redis or PostgreSQL is marked as another SynapseScale's; rows of tenants that are gone are not deleted",
    )
    TOPOLOGY_NOT_WRITTEN = (
        "TopologyNotWritten",
        "the row that tells producers which queues to use could not be changed; it is tried again",
    )
    # children
    APPLIED = "Applied", "every object is as it should be"
    FROZEN = "Frozen", "children are left as they are until the reason of Stalled is repaired"
    QUOTA_EXCEEDED = "QuotaExceeded", "a ResourceQuota of the namespace leaves no room"
    REFUSED = "Refused", "the API server or a policy refuses an object or its pods"
    KIND_ABSENT = "KindAbsent", "the cluster does not know a kind that is needed"
    NAME_TAKEN = "NameTaken", "an object with the name of a child exists and belongs to somebody else"
    CLUSTER_UNAVAILABLE = "ClusterUnavailable", "the API server did not answer; it is tried again"
    PAUSED_BY_ANNOTATION = (
        "PausedByAnnotation",
        "the annotation scale.synapseorch.com/paused is there; remove it to go on",
    )
    NOT_PAUSED = "NotPaused", "the operator keeps the children as they should be"
    # pods
    UNSCHEDULABLE = "Unschedulable", "no node has room for a pod, or none fits"
    IMAGE_PULL_FAILED = "ImagePullFailed", "the image of the workers cannot be pulled"
    POD_CONFIG_ERROR = "PodConfigError", "a container cannot be created from its configuration"
    CRASH_LOOP = "CrashLoop", "workers end again and again"
    # definitions
    SYNCED = "Synced", "everything in the sources is in PostgreSQL"
    NO_SOURCES = "NoSources", "spec.sync names no source: definitions come from elsewhere"
    SYNC_PENDING = "SyncPending", "the sources have not been synced yet: a sync is under way, or waits for PostgreSQL"
    SYNC_NOT_ASKED = "SyncNotAsked", "spec.sync.auto is false and the annotation has not asked for these sources yet"
    SOURCE_NOT_FOUND = "SourceNotFound", "a source does not exist; what came from it stays as it was"
    SOURCE_UNREADABLE = "SourceUnreadable", "a source could not be read; what came from it stays as it was"
    DOCUMENTS_REFUSED = "DocumentsRefused", "some documents cannot be taken; all others are synced"
    SYNC_FAILED = "SyncFailed", "a sync ended early; it is tried again"
    # storage
    BUCKET_CONFIGURED = "BucketConfigured", "vault files and run logs are in a bucket"
    SINGLE_WORKER = "SingleWorker", "there is no bucket, and one worker at most, which keeps files on its own disk"
    LOCAL_DISK = (
        "LocalDisk",
        "there is no bucket and more than one worker: each sees only what it wrote itself, until its pod goes",
    )
    # the V2 API
    API_SERVES = "ApiServes", "every wanted pod of the V2 API is ready"
    API_OFF = "ApiOff", "spec.api.enabled is false"
    API_NOT_READY = "ApiNotReady", "fewer pods of the V2 API than wanted answer their readiness probe"
    API_KEYS_REFUSED = "ApiKeysRefused", "some entries of the Secret of API keys are no keys; all others are in force"
    # Ready of a SynapseTenant
    TENANT_STORED = "TenantStored", "the tenant's row in PostgreSQL says what its spec says"
    SCALE_NOT_FOUND = "ScaleNotFound", "the SynapseScale that spec.scaleRef names does not exist, or is being deleted"
    DUPLICATE_TENANT_ID = "DuplicateTenantId", "an older SynapseTenant of the same scale has this tenant id"
    NOT_MANAGED = (
        "NotManaged",
        "the tenant's row in PostgreSQL was made by somebody else, who keeps it: it is neither adopted nor deleted",
    )
    ISOLATION_OFF = (
        "IsolationOff",
        "spec.workers is given, and tenancy.isolation of the SynapseScale is false: the tenant has no queue of its own",
    )
    WORKERS_UNUSED = (
        "WorkersUnused",
        "spec.workers is given, and workers of the tenant's own would get no job: its jobs go elsewhere",
    )
    NOT_MIGRATED = "NotMigrated", "PostgreSQL lacks the tables of this release; the first worker that starts makes them"


class EventReason(_Documented):
    """Reasons of Events on a SynapseScale (hints, may change)."""

    CREATED = "Created", "a Deployment was created"
    UPDATED = "Updated", "a Deployment was changed, since the spec or a Secret changed"
    SCALED = "Scaled", "the number of workers was changed"
    REPAIRED = "Repaired", "somebody changed or deleted an object of the scale, and it was put right"
    BECAME_READY = "BecameReady", "the scale became ready"
    NOT_READY = "NotReady", "the scale stopped being ready, or the reason changed"
    REDIS_UNSAFE = "RedisUnsafe", "Redis may drop jobs, or is too old"
    NOT_SYNCED = "NotSynced", "definitions could not be synced, or not all of them"
    BACKEND_SHARED = "BackendShared", "another SynapseScale uses the same Redis or the same database"
