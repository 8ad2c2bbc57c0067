"""Rules: quotas, placement, statuses, volume types, and how operations fail."""
