"""The Synapse Scale worker: claims jobs from Redis and runs orchestrations, step by step, from Postgres."""

__version__ = "0.1.0"
