"""Pecan's controllers, a module for each resource; :mod:`root` has the tree."""
