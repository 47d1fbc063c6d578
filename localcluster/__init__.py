"""A throw-away Kubernetes for the demo and the tests: `python3 -m localcluster`.

It exists because the operator and the worker are only believed when real pods
run, and many machines have neither Docker nor a cluster to hand. It uses the
standard library alone, so that it runs before any virtual environment exists.

The modules, from the outside in:

    cli                     arguments to calls, errors to exit codes
    native, kind            the same commands on a cluster of our own and on kind
    node, control_plane     from nothing to ready, with pods and without
    clusters                what these two share: a supervised state folder
    supervisor, isolation   the first process of a cluster and the namespaces it lives in
    components, addresses   pure: command lines, configuration files, address ranges
    images, engines, ocilayout, wheels, loading
                            what images there are, who builds them, how they reach the node
    tools, machine          the built programs; what the machine itself must offer
"""
