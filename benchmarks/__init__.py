"""Measurements of the data path beside bare loops that do only the unavoidable work.

``python -m benchmarks`` prints one table.  Everything happens on a memory file system, so what is
measured is this code and not a disk.
"""
