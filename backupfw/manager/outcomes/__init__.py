"""What becomes of tasks: for each kind, what an attempt works on and how it ends."""
