"""Faults of the system that this one replaces: none of them may ever happen here."""
