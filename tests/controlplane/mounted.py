"""The operator as it runs in a pod, with the files of its service account in another place; for `soak`.

A token of a pod ends after a while and is replaced in its file. A kubeconfig holds one for good, so it cannot show
that the operator reads the next one in time.
"""

from __future__ import annotations

import os

from kubernetes.aio.config import incluster_config

from synapse_operator.__main__ import main

if __name__ == "__main__":
    folder = os.environ["SERVICE_ACCOUNT_FOLDER"]
    incluster_config.SERVICE_TOKEN_FILENAME = f"{folder}/token"
    incluster_config.SERVICE_CERT_FILENAME = f"{folder}/ca.crt"
    main()
