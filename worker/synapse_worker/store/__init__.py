"""Postgres: the tables, and every statement that touches them."""
