"""A key store for backupfw: keys in Barbican, Vault or OpenBao, through Castellan."""
