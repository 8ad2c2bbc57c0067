"""Backup policies: backups that are made by a schedule, and deleted by a retention.

``schedule`` and ``retention`` compute, without a database; ``settings`` reads what users ask for.
``planning`` writes the runs of due policies, ``runs`` begins and ends them, ``ending`` deletes what retention
lets go; ``preview`` computes with the same functions what will happen.  ``manager`` has the use cases.
"""
