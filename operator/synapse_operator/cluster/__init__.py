"""The only Kubernetes IO of the operator: `client` speaks, `observe` reads, `apply` writes."""
