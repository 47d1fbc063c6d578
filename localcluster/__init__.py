"""A throw-away Kubernetes for the demo and the tests: `python3 -m localcluster`.

It exists because the operator and the worker are only believed when real pods
run, and many machines have neither Docker nor a cluster to hand. It uses the
standard library alone, so that it runs before any virtual environment exists.

The modules, from the outside in:

    cli                     arguments to calls, problems to exit codes
    node, kind              the two kinds of cluster; control_plane is the small one without pods
    images                  what images there are and which of them are out of date
    tools, machine          the built programs; what the machine itself must offer
    supervisor, isolation   the first process of a cluster and the namespaces it lives in
    components, addresses   pure: command lines, configuration files, address ranges
"""
