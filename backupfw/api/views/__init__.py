"""Answer bodies: functions from a manager's record to the exact keys that clients check."""
