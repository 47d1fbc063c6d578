"""What a builder returns: one object to be applied, with the metadata that all our objects share.

The hash annotation is made here, over everything else in the manifest, so that no builder can forget it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.scale import SynapseScale
from synapse_operator.naming import Kind, Ref


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object as it is to be applied; `body` is the whole request, `applied_hash` stands in it too."""

    ref: Ref
    applied_hash: str
    body: JsonObject


def manifest(
    scale: SynapseScale,
    kind: Kind,
    name: str,
    content: JsonObject,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Return the manifest of a child of `scale`.

    Args:
        scale: the owner; the garbage collector removes the child with it.
        kind: the child's kind.
        name: the child's name, from `naming`.
        content: the top-level fields beside apiVersion, kind and metadata, without nulls and in the form in
            which the API server stores them.
        labels: labels beside those of every child.
        annotations: annotations beside those of every child.
    """
    metadata = child_metadata(scale, name, labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    body: JsonObject = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **content}
    applied_hash = naming.content_hash(body)
    metadata["annotations"] = {**(annotations or {}), naming.HASH_ANNOTATION: applied_hash}
    return Manifest(Ref(kind, scale.metadata.namespace, name), applied_hash, body)


def child_metadata(scale: SynapseScale, name: str, labels: Mapping[str, str] | None = None) -> JsonObject:
    """Return the metadata that every child has, without annotations; the operator's own labels win."""
    return {
        "name": name,
        "namespace": scale.metadata.namespace,
        "labels": {**(labels or {}), **naming.child_labels(scale.metadata.name)},
        "ownerReferences": [
            {
                "apiVersion": naming.API_VERSION,
                "kind": naming.SCALE_KIND,
                "name": scale.metadata.name,
                "uid": scale.metadata.uid,
                "controller": True,
                # A foreground deletion of the scale waits for the children.
                "blockOwnerDeletion": True,
            }
        ],
    }
