"""The use cases of the API: one class for each kind of resource, one method per use case."""
