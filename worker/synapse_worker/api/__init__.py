"""The V2 API: `synapse-worker api`, stateless, any number of replicas.

`process` is one process from start to exit, `app` puts the application together, `routes` hold the paths. `auth` and
`admission` say who may do what and how much of it; `sse` follows streams of events; `inline` runs jobs here, where
scale mode is off, and is the only module that knows the engine.
"""
