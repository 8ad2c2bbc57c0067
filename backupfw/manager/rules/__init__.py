"""What is allowed and what follows from it: quotas, places, statuses, types, failures."""
