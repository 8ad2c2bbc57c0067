"""The queue: which task runs next and where, what tasks wait for, which workers exist, and events."""
