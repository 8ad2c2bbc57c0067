"""What the API is asked to do: one class for each kind of thing, one method per use case."""
