"""Handlers, one module a resource, and the one table of all their routes."""
