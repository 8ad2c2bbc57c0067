"""How a task reaches a worker.  The database row is the truth; a message only wakes somebody up."""
