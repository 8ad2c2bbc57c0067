"""Bodies of requests and answers as JSON schema (draft 4).

A body's schema is a function of the call's version (:func:`types.by_version`).
"""
