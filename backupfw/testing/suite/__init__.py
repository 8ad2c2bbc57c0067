"""The parts of the conformance suite, by subject; ``backupfw.testing.chunkstore`` puts them together."""
