"""Audit and purge: whether rows agree with each other, and which rows can be deleted."""
