"""Outcomes of tasks: for each kind, the plan of an attempt and the ways in which it ends."""
