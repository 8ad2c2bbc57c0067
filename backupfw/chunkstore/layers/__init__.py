"""Policies around a driver, one small class each; ``stack.py`` puts them in order."""
