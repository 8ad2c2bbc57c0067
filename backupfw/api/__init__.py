"""HTTP and nothing but HTTP: from a request to one call of the manager, and back.

A request passes, from the outside in: :mod:`pipeline` (proxies, health, CORS,
request id), :mod:`middleware` (size, last resort for errors),
:mod:`negotiation` (path and version), :mod:`identity` (who asks), Pecan with the hooks of
:mod:`request` and the tree of :mod:`controllers`.
``app.make_app`` puts them together.
"""
