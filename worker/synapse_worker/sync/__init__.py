"""Definitions and settings as users write them into Postgres: for `synapse-worker sync` and for the operator.

`text` finds the documents of a JSON or YAML text and their lines, `documents` says what each is and how it is stored,
`folder` reads the files of a folder, `judge` has users' code judged, `store` brings a set of sources into Postgres.
"""
