"""Figures of the worker, each a ratio against a named reference on the same servers in the same minutes.

Never part of the tests: a figure is written down with its spread, not asserted.
"""
