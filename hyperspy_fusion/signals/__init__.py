"""The registered signal classes.

The modules may be imported from here: HyperSpy or the user asks for the classes, which bring dask with them.
"""
