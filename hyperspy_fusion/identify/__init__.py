"""Which element, line, edge or detector a signal shows, from its metadata and its title.

``maps`` and ``io`` import it.
"""
