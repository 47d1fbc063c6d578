"""The job queue: arq's wire format in Redis, claimed through owned leases."""
