"""The console: web pages for people, served beside the API by the same process.

A page reads and acts through the use cases that the API calls, and the same policy rules decide what it
offers and what is refused.  There is no JavaScript of ours: htmx fetches parts of a page again, and without
it every page works as well.
"""
