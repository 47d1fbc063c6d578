"""manifests/install.yaml is what manifests/base renders to, and what it holds keeps its promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from synapse_operator import naming
from synapse_operator.api import crd
from synapse_operator.settings import Settings

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"

Json = dict[str, Any]


def render(folder: Path) -> str:
    """Render a kustomization with the kubectl that `make install-yaml` uses."""
    done = subprocess.run(
        [sys.executable, "-m", "localcluster", "kubectl", "kustomize", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed() -> list[Json]:
    return list(yaml.safe_load_all((MANIFESTS / "install.yaml").read_text()))


def of(objects: list[Json], kind: str) -> list[Json]:
    return [each for each in objects if each["kind"] == kind]


def test_install_yaml_is_up_to_date() -> None:
    assert (MANIFESTS / "install.yaml").read_text() == render(MANIFESTS / "base"), "run: make install-yaml"


def test_it_holds_the_crds_that_the_models_give(installed: list[Json]) -> None:
    found = {each["metadata"]["name"]: each["spec"] for each in of(installed, "CustomResourceDefinition")}
    assert found == {f"{resource.plural}.{naming.GROUP}": crd.crd(resource)["spec"] for resource in crd.RESOURCES}


def test_the_operator_satisfies_pod_security_restricted(installed: list[Json]) -> None:
    (namespace,) = of(installed, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    (deployment,) = of(installed, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert set(container["resources"]) == {"requests", "limits"}


def test_its_environment_and_ports_are_those_of_the_settings(installed: list[Json]) -> None:
    (deployment,) = of(installed, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    names = {each["name"] for each in container["env"]}
    assert {name.lower() for name in names} <= set(Settings.model_fields)
    required = {name for name, field in Settings.model_fields.items() if field.is_required()}
    assert required <= {name.lower() for name in names}
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {
        "health": Settings.model_fields["health_port"].default,
        "metrics": Settings.model_fields["metrics_port"].default,
    }
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "health"


def test_make_image_names_writes_both_names_everywhere(tmp_path: Path) -> None:
    """`IMAGE_PREFIX=... IMAGE_TAG=... make image-names`, and once more with other names."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    for prefix, tag in (("registry.example.com:5000/team", "0.1.0"), ("ghcr.io/another", "0.2.0")):
        subprocess.run(["make", "image-names", f"IMAGE_PREFIX={prefix}", f"IMAGE_TAG={tag}"], cwd=tmp_path, check=True)
        for file in ("install.yaml", "overlays/namespaced/kustomization.yaml"):
            text = (tmp_path / "manifests" / file).read_text()
            images = re.findall(r"(?:image|value): (\S*synapse-scale-(?:operator|worker)\S*)", text)
            assert sorted(images) == [f"{prefix}/synapse-scale-{name}:{tag}" for name in ("operator", "worker")]
            assert len(re.findall("/synapse-scale-(?:operator|worker)", text)) == 2


def test_the_namespaced_overlay_grants_nothing_outside_its_namespaces() -> None:
    objects = list(yaml.safe_load_all(render(MANIFESTS / "overlays" / "namespaced")))
    assert of(objects, "ClusterRoleBinding") == []
    bound = {each["metadata"]["namespace"]: each["roleRef"]["kind"] for each in of(objects, "RoleBinding")
             if each["roleRef"]["kind"] == "ClusterRole"}  # fmt: skip
    (deployment,) = of(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    watched = next(each["value"] for each in container["env"] if each["name"] == "WATCH_NAMESPACES")
    assert set(watched.split(",")) == set(bound)
