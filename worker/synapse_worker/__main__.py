"""`python -m synapse_worker` is the command `synapse-worker`."""

from synapse_worker.cli import main

if __name__ == "__main__":
    main()
