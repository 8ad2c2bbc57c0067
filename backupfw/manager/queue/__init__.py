"""Which task runs next and where: claims, what a task waits for, who can run it; events of tasks."""
