"""What operators ask: whether the rows agree with each other, and what may be forgotten."""
