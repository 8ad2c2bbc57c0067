"""The pytest plug-in for driver authors."""
