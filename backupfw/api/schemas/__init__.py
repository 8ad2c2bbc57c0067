"""Request bodies as JSON schema (draft 4): data, one module a resource.

Each schema is reached by a function of the call's version, so that a later version's field is one
``if`` beside the others.
"""
