"""Wakes workers and sends notifications.  Tasks are rows of the database; a message only saves waiting."""
