"""HTTP and nothing but HTTP: from a request to one call of the manager, and back.

A request passes, from the outside in: the layers of :mod:`pipeline` (proxies, health, CORS, request id, size,
path and version), :mod:`identity` (who asks), and Pecan with its :mod:`hooks` and the tree of
:mod:`controllers`.  ``app.make_app`` puts them together.
"""
