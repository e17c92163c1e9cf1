"""Files: ``scan`` chooses image and spectra of a file, ``export`` writes files of maps.

The command line and ``signals`` import it.
"""
