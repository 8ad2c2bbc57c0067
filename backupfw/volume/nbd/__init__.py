"""Blocks over the NBD protocol: a client on libnbd, and a point and a target on that client.

Providers of core and of distributions use it; which server they ask, and who may ask it, they decide.
"""
