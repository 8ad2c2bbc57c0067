"""Where blocks come from and go to: the provider interface and the ``local`` provider."""
