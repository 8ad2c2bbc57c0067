"""HTTP and nothing but HTTP: from a request to one call of the manager, and back.

A request passes, from the outside in: :mod:`middleware` (request id, size, last resort for errors),
:mod:`negotiation` (path and version), :mod:`identity` (who asks), Pecan with :mod:`hooks` (faults as
JSON), the route table of :mod:`controllers`, the body's schema, the policy, the handler.
``app.make_app`` puts them together.
"""
