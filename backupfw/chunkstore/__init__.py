"""The chunk store boundary: the only part of core that drivers import."""
