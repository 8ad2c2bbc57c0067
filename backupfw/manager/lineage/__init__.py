"""Statuses of backups, and the lineage of manifests: which of them share objects, and which can be
deleted."""
