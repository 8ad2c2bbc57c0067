"""backupfw: a backup service for block volumes with plug-in stores."""

__version__ = "0.1.0"
