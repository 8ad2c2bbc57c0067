"""The life of backups, and of the manifests that share objects: who needs whom, and what may go."""
