"""Which of several operator processes acts: the one that holds a coordination Lease.

Our own, because the elector in kubernetes.aio 37 cannot create its Lease, lets two lead after a
cancellation and waits for ever on an API server that hangs. The rules are client-go's: a Lease that was
not renewed for its duration, as seen on the observer's own monotonic clock, is free; a holder that could
not renew within the shorter deadline stops by itself. So one stops before another starts, whatever the
clocks say. `__main__` decides what leading means; here nobody is told, one awaits.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from kubernetes.aio.client import CoordinationV1Api, V1Lease, V1LeaseSpec, V1ObjectMeta

from synapse_operator.errors import ApiNotFound, ApiRefused, ApiUnavailable, OperatorError

_log = logging.getLogger(__name__)

T = TypeVar("T")


class LeaseLost(OperatorError):
    """Somebody else holds the Lease, or we could not renew it in time: stop acting at once."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the election; each must be well below the one before it.

    Attributes:
        duration: a Lease not renewed for so long may be taken.
        deadline: a holder that could not renew for so long stops.
        retry: time between two tries, and the longest wait for one answer; up to a fifth is added at random,
            and a renewal that failed is tried again after a quarter of it.
    """

    duration: float = 10.0
    deadline: float = 7.0
    retry: float = 2.0


class Elector:
    """One candidate for one Lease."""

    def __init__(
        self, leases: CoordinationV1Api, *, namespace: str, name: str, identity: str, timing: Timing | None = None
    ) -> None:
        """`identity` must be unique per process, not only per pod: a restarted container is somebody else."""
        self._leases = leases
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timing = timing or Timing()
        self._held: V1Lease | None = None
        self._renewed_at = 0.0
        self._watched = ""
        """The version of somebody else's Lease that we saw last."""
        self._watched_until = 0.0
        """When that version is free to take, unless renewed (monotonic)."""
        self.answered_at: float | None = None
        """When the API server last told us about the Lease (monotonic); None = never yet."""

    async def acquire(self) -> None:
        """Return as soon as we hold the Lease, however long that takes."""
        while True:
            try:
                if await self._try_to_take():
                    _log.info("holding the Lease %s/%s as %s", self._namespace, self._name, self._identity)
                    return
            except OperatorError as error:
                _log.warning("cannot read or take the Lease %s/%s: %s", self._namespace, self._name, error)
            # Not later than the moment at which what we watch runs out: takeover is what users wait for.
            await self._pause(self._watched_until - _clock())

    async def hold(self) -> None:
        """Renew the Lease for as long as that succeeds.

        Raises:
            LeaseLost: always, at the latest one deadline after the last renewal began.
        """
        failed = False
        while True:
            # Sooner after a failure, and never asleep beyond the deadline: that is what keeps two from leading.
            await self._pause(self._left(), share=0.25 if failed else 1.0)
            try:
                # The bound covers the case that an answer trickles in beyond every other deadline.
                async with asyncio.timeout(max(self._left(), 0.0)):
                    await self._renew()
                failed = False
            except (ApiUnavailable, TimeoutError) as error:
                failed = True
                _log.warning("cannot renew the Lease: %s", error or "no answer before the deadline")
            if self._left() <= 0:
                self._held = None
                raise LeaseLost(f"The Lease could not be renewed for {self._timing.deadline:.0f} s.")

    async def release(self) -> None:
        """Let the next candidate start at once; a failure only makes it wait for the duration."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            await self._write(held, holder="", duration=1)
        except OperatorError as error:
            _log.warning("cannot release the Lease: %s", error)

    async def _try_to_take(self) -> bool:
        began = _clock()
        try:
            lease = await self._call(self._leases.read_namespaced_lease(self._name, self._namespace))
        except ApiNotFound:
            lease = None
        self.answered_at = _clock()
        if lease is not None and not self._is_free(lease):
            return False
        try:
            await self._write(lease, holder=self._identity)
        except ApiRefused as error:
            if error.status != 409:
                raise
            return False  # another candidate was faster
        self._renewed_at = began
        return True

    def _is_free(self, lease: V1Lease) -> bool:
        """Judge by our own clock since when the Lease looks like this; its time stamps may be from anywhere."""
        spec, version = lease.spec, _version(lease)
        now = _clock()
        if not spec or not spec.holder_identity or spec.holder_identity == self._identity:
            return True
        if self._watched != version:
            self._watched = version
            self._watched_until = now + max(float(spec.lease_duration_seconds or 0), self._timing.duration)
        return now >= self._watched_until

    async def _renew(self) -> None:
        """Renew, or leave things as they are when somebody touched the Lease in between.

        Raises:
            LeaseLost: the Lease is gone or somebody else's.
            ApiUnavailable: try again.
        """
        began = _clock()
        try:
            await self._write(self._held, holder=self._identity)
        except ApiRefused as error:
            if error.status not in (404, 409):
                raise ApiUnavailable(str(error)) from None  # a right taken away may come back within the deadline
            # Our own earlier write may have arrived although its answer did not.
            lease = None
            if error.status == 409:
                lease = await self._call(self._leases.read_namespaced_lease(self._name, self._namespace))
            if lease is None or not lease.spec or lease.spec.holder_identity != self._identity:
                self._held = None
                raise LeaseLost("Another process holds the Lease, or it was deleted.") from None
            self._held = lease
            await self._write(lease, holder=self._identity)
        self._renewed_at = began

    async def _write(self, lease: V1Lease | None, *, holder: str, duration: float | None = None) -> None:
        """Create the Lease, or replace exactly the version given; remember what is then ours."""
        now = _now()
        old = lease.spec if lease is not None and lease.spec else V1LeaseSpec()
        changed = old.holder_identity != holder
        spec = V1LeaseSpec(
            holder_identity=holder,
            lease_duration_seconds=round(duration or self._timing.duration),
            acquire_time=now if changed else old.acquire_time,
            renew_time=now,
            lease_transitions=(old.lease_transitions or 0) + int(bool(holder) and changed),
        )
        metadata = V1ObjectMeta(name=self._name, namespace=self._namespace)
        if lease is None:
            body = V1Lease(metadata=metadata, spec=spec)
            written = await self._call(self._leases.create_namespaced_lease(self._namespace, body))
        else:
            metadata.resource_version = _version(lease)
            body = V1Lease(metadata=metadata, spec=spec)
            written = await self._call(self._leases.replace_namespaced_lease(self._name, self._namespace, body))
        self.answered_at = _clock()
        self._held = written if holder else None

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timing.retry):
                return await call
        except TimeoutError:
            raise ApiUnavailable(f"The API server did not answer within {self._timing.retry:.0f} s.") from None

    def _left(self) -> float:
        """Return the seconds until we must have renewed."""
        return self._renewed_at + self._timing.deadline - _clock()

    async def _pause(self, limit: float, *, share: float = 1.0) -> None:
        """Sleep one retry (or a share of it) with jitter, but no longer than a positive `limit`."""
        pause = share * self._timing.retry * random.uniform(1.0, 1.2)  # noqa: S311  # no secret depends on it
        await asyncio.sleep(min(pause, limit) if limit > 0 else pause)


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _version(lease: V1Lease) -> str:
    return (lease.metadata.resource_version if lease.metadata else None) or ""


def _now() -> datetime:
    """Return the wall clock for people who read the Lease; the server wants six digits, never none."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond or 1)
