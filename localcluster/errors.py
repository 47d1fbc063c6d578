"""The two ways in which a command can fail, each with the exit code that scripts see.

A problem is one sentence for a person: what is wrong and what to do about it.
Anything else that is raised is a bug and keeps its traceback.
"""


class ClusterError(Exception):
    """The command could not do what was asked."""

    exit_code = 1


class NoNodeError(ClusterError):
    """This machine cannot run a node; the control plane alone may still work.

    A code of its own lets `make test` leave the layers with pods out and say so,
    instead of taking a machine's limits for a failure of the project.
    """

    exit_code = 3
