"""The demo: from nothing to runs that completed in worker pods, told line by line.

It does what the README tells a user to do, with the same manifests; what is special is only that cluster, images,
stores, model server and receiver come from this repository too. `story` has the scenes, `cluster` brings what they
need, `api` talks to the V2 API, `lines` puts events and metrics into words.
"""
