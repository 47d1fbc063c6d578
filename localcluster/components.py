"""Command lines and configuration of every component. Pure: state and addresses in, values out.

Configuration files are written as JSON, which every reader of YAML takes, so
that they can be built as values and need no template language.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from localcluster.addresses import Addresses
from localcluster.places import State

NODE = "node"
API_PORT = 6443
DNS_PORT = 53
DNS_READY_PORT = 8181
PROXY_HEALTH_PORT = 10256
KUBELET_HEALTH_PORT = 10248
CLUSTER_DOMAIN = "cluster.local"
# The image whose container holds a pod's namespaces; any that only sleeps will do.
SANDBOX_IMAGE = "localhost/synapse-base:trixie"
# Debian's place for the CNI plugins, then where other distributions put them.
CNI_FOLDERS = ("/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin")


@dataclass(frozen=True)
class Component:
    name: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Endpoints:
    """Where the control plane listens."""

    api: IPv4Address
    api_port: int
    etcd_client_port: int
    etcd_peer_port: int
    services: IPv4Network
    reconciles_endpoints: bool
    """Whether the service `kubernetes` points at the API server; a loopback address may not be written there."""

    @property
    def server(self) -> str:
        return f"https://{self.api}:{self.api_port}"


def node_endpoints(addresses: Addresses) -> Endpoints:
    return Endpoints(
        api=addresses.node,
        api_port=API_PORT,
        etcd_client_port=2379,
        etcd_peer_port=2380,
        services=addresses.services,
        reconciles_endpoints=True,
    )


def control_plane(state: State, program: Path, at: Endpoints) -> list[Component]:
    """etcd, the API server and the controllers: all that a test of the operator's own behaviour needs."""
    client_url = f"http://127.0.0.1:{at.etcd_client_port}"
    peer_url = f"http://127.0.0.1:{at.etcd_peer_port}"
    pki = state.pki
    node = str(program)
    etcd = Component(
        "etcd",
        (
            *(node, "etcd", "--data-dir", f"{state.root}/etcd", "--log-level", "warn"),
            *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"default={peer_url}"),
            # The data is thrown away with the cluster, so no write has to wait for the disk.
            "--unsafe-no-fsync",
        ),
    )
    apiserver = Component(
        "kube-apiserver",
        (
            *(node, "kube-apiserver", "--etcd-servers", client_url),
            *("--bind-address", str(at.api), "--secure-port", str(at.api_port), "--advertise-address", str(at.api)),
            *("--endpoint-reconciler-type", "lease" if at.reconciles_endpoints else "none"),
            *("--service-cluster-ip-range", str(at.services), "--allow-privileged"),
            *("--authorization-mode", "Node,RBAC", "--token-auth-file", f"{pki}/tokens.csv"),
            *("--tls-cert-file", f"{pki}/server.crt", "--tls-private-key-file", f"{pki}/server.key"),
            *("--service-account-issuer", "https://kubernetes.default.svc"),
            *("--service-account-key-file", f"{pki}/service-account.key"),
            *("--service-account-signing-key-file", f"{pki}/service-account.key"),
            *("--kubelet-client-certificate", f"{pki}/kubelet-client.crt"),
            *("--kubelet-client-key", f"{pki}/kubelet-client.key", "--kubelet-certificate-authority", f"{pki}/ca.crt"),
            # Logs and exec ask for a node's name in DNS otherwise, where it is not known.
            *("--kubelet-preferred-address-types", "InternalIP"),
            *("--audit-policy-file", f"{state.root}/audit-policy.yaml", "--audit-log-path", str(state.audit_log)),
            # Tests count the lines of one file.
            *("--audit-log-maxsize", "0"),
        ),
    )
    manager = Component(
        "kube-controller-manager",
        (
            *(node, "kube-controller-manager", "--kubeconfig", str(state.kubeconfig), "--leader-elect=false"),
            *("--service-account-private-key-file", f"{pki}/service-account.key", "--root-ca-file", f"{pki}/ca.crt"),
            *("--use-service-account-credentials", "--secure-port", "0"),
            # It makes this folder, by default outside of the state.
            *("--flex-volume-plugin-dir", f"{state.root}/volume-plugins"),
        ),
    )
    return [etcd, apiserver, manager]


def node_agents(state: State, programs: Path, addresses: Addresses) -> list[Component]:
    """What turns a control plane into a cluster that runs pods."""
    node = f"{programs}/node"
    return [
        Component(
            "kube-scheduler",
            (
                *(node, "kube-scheduler", "--kubeconfig", str(state.kubeconfig), "--leader-elect=false"),
                *("--secure-port", "0"),
            ),
        ),
        Component("containerd", (f"{programs}/containerd", "--config", f"{state.containerd}/config.toml")),
        Component(
            "kubelet",
            (
                *(node, "kubelet", "--config", f"{state.root}/kubelet.json", "--kubeconfig", str(state.kubeconfig)),
                *("--root-dir", f"{state.root}/kubelet", "--cert-dir", f"{state.root}/kubelet/pki"),
                *("--hostname-override", NODE, "--node-ip", str(addresses.node)),
            ),
        ),
        Component("kube-proxy", (node, "kube-proxy", "--config", f"{state.root}/kube-proxy.json")),
        Component("coredns", (node, "coredns", "-conf", f"{state.root}/Corefile")),
    ]


def kubeconfig(server: str, authority: str, token: str) -> str:
    """`authority` is the CA certificate in base64, as the format wants it."""
    name = "localcluster"
    return _json(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": authority}}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": "admin"}}],
            "current-context": name,
        }
    )


def kubelet_configuration(state: State, addresses: Addresses, cgroup_root: str) -> str:
    return _json(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": str(addresses.node),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{state.pki}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{state.pki}/server.crt",
            "tlsPrivateKeyFile": f"{state.pki}/server.key",
            "containerRuntimeEndpoint": f"unix://{state.containerd_socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroup_root}",
            "failCgroupV1": False,
            "failSwapOn": False,
            # These would need quotas and free disk space that a test machine may not have.
            "localStorageCapacityIsolation": False,
            "evictionHard": {},
            "imageGCHighThresholdPercent": 100,
            "clusterDNS": [str(addresses.node)],
            "clusterDomain": CLUSTER_DOMAIN,
            # Empty: pods do not inherit the name servers of this machine.
            "resolvConf": "",
            "maxPods": 250,
            # A changed ConfigMap or Secret reaches its pods within this time instead of a minute.
            "syncFrequency": "10s",
            "volumePluginDir": f"{state.root}/volume-plugins",
            "podLogsDir": f"{state.root}/pod-logs",
        }
    )


def proxy_configuration(state: State, addresses: Addresses) -> str:
    return _json(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "bindAddress": str(addresses.node),
            "healthzBindAddress": f"{addresses.node}:{PROXY_HEALTH_PORT}",
            "clusterCIDR": str(addresses.pods),
            "clientConnection": {"kubeconfig": str(state.kubeconfig)},
            # Zero leaves the kernel's limits alone: they belong to the whole machine.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "hostnameOverride": NODE,
        }
    )


def containerd_configuration(state: State, plugin_folders: Sequence[str]) -> str:
    root = state.containerd
    folders = ", ".join(json.dumps(folder) for folder in plugin_folders)
    return f"""\
version = 3
root = "{root}/root"
state = "{root}/state"
# It would make folders below /opt for programs that nobody installs.
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{state.containerd_socket}"
[plugins."io.containerd.snapshotter.v1.overlayfs"]
  root_path = "{state.snapshots}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{SANDBOX_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  # Lowering a score needs a capability that root in a container lacks.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [{folders}]
    conf_dir = "{root}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""


def pod_network(addresses: Addresses) -> str:
    """A bridge on the node; it enforces no NetworkPolicy."""
    bridge: dict[str, Any] = {
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": str(addresses.pods)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    port_map = {"type": "portmap", "capabilities": {"portMappings": True}}
    return _json({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, port_map]})


def dns_configuration(state: State, addresses: Addresses) -> str:
    """The root zone is ours too, so a name outside the cluster is refused at once and never waits for a time-out."""
    return f"""\
.:{DNS_PORT} {{
    bind {addresses.node}
    errors
    health {addresses.node}:8080
    ready {addresses.node}:{DNS_READY_PORT}
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa . {{
        kubeconfig {state.kubeconfig}
        pods insecure
        ttl 5
    }}
    cache 5
}}
"""


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"
