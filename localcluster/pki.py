"""Keys and certificates of one cluster, made anew for each by the openssl program.

A certificate authority of the cluster's own signs the API server's certificate,
so that pods and tests verify what they talk to as they would in a real cluster.
The extensions are those that Python 3.13 insists on.
"""

import secrets
from collections.abc import Iterable
from ipaddress import IPv4Address

from localcluster.commands import run
from localcluster.places import State

DAYS = "3650"
ADMIN_GROUP = "system:masters"
SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


def openssl_config(addresses: Iterable[IPv4Address]) -> str:
    alternatives = ",".join([f"DNS:{name}" for name in SERVER_NAMES] + [f"IP:{address}" for address in addresses])
    return f"""\
[req]
distinguished_name = subject
[subject]
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {alternatives}
[client]
basicConstraints = CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def create(state: State, addresses: Iterable[IPv4Address]) -> None:
    """Writes `ca`, `server` and `kubelet-client` (.crt and .key), service-account.key and the admin's token."""
    folder = state.pki
    folder.mkdir(mode=0o700)
    config = folder / "openssl.cnf"
    config.write_text(openssl_config(addresses))

    def certify(name: str, section: str, subject: str) -> None:
        signer = [] if section == "authority" else ["-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key"]
        run(
            [
                *("openssl", "req", "-x509", "-config", str(config), "-extensions", section),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256"),
                *("-days", DAYS, "-subj", subject, *signer),
                *("-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.crt"),
            ]
        )

    certify("ca", "authority", f"/CN=local cluster {state.name}")
    certify("server", "server", "/CN=kube-apiserver")
    # By this certificate the kubelet knows the API server when it asks for logs and exec.
    certify("kubelet-client", "client", f"/O={ADMIN_GROUP}/CN=kube-apiserver-kubelet-client")
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{folder}/service-account.key"])
    state.token.write_text(secrets.token_hex(24))
    (folder / "tokens.csv").write_text(f'{state.token.read_text()},admin,admin,"{ADMIN_GROUP}"\n')
