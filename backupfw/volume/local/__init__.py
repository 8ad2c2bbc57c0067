"""The ``local`` provider: volumes that are image files or block devices of this host."""
