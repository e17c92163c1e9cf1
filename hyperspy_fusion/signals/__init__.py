"""The registered signal classes, and the ``fuse`` method of every HyperSpy signal.

The modules may be imported from here: HyperSpy or the user asks for the classes, which bring dask with them.
"""
