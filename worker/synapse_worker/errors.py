"""The errors that cross module borders, and what each asks of whoever catches it.

IO modules raise these instead of their client's exceptions; the job loop turns them into
retry, final or suspend, the command line into one sentence. Messages never hold a secret.
"""

from __future__ import annotations


class SynapseError(Exception):
    """Base of our errors; `str()` is one sentence that a person understands."""


class ConfigurationError(SynapseError):
    """A setting, URL or file that cannot be used as it is: the process does not start."""


class StoreUnavailable(SynapseError):
    """A store of ours does not answer now: suspend, hold leases, wait; no try is burned.

    Attributes:
        store: "Redis", "PostgreSQL", "S3" or "The local disk".
    """

    def __init__(self, store: str, sentence: str) -> None:
        super().__init__(f"{store} {sentence}")
        self.store = store


class StoreRefused(SynapseError):
    """A store answered and said no (missing table or right, wrong type of key): waiting repairs nothing by itself."""


class WrongKeyType(StoreRefused):
    """A key of ours in Redis has another type: what needs that key stops, everything else goes on."""


class BlobRefused(SynapseError):
    """An artifact cannot have this name, or that content; who asked has to ask for something else."""


class BlobNotFound(SynapseError):
    """There is no artifact of this key.

    Attributes:
        key: as the store knows it, without its prefix.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no {key!a}")
        self.key = key


class PayloadError(SynapseError):
    """A job's payload cannot be read or names something that does not exist: final."""


class SessionTaken(SynapseError):
    """A chat session is another tenant's: nothing was written, and another id has to be chosen."""


class OwnershipLost(SynapseError):
    """Another claim owns the run: stop at once and write nothing more."""


class JobFailed(SynapseError):
    """The job ends as failed, for good; the sentence is what the run row and the dead letter say."""


class JobRetry(SynapseError):
    """This execution failed for a reason that may pass: counted, handed back with back-off."""


class EgressRefused(SynapseError):
    """A user's URL cannot be used, or leads where requests of users may not go: final."""


class EgressFailed(SynapseError):
    """A user's receiver could not be reached or did not answer in time: it may pass."""
