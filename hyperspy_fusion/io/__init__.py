"""Files: ``scan`` chooses image and spectra of a file, ``export`` writes maps for other programs.

The command line and ``signals`` import it.
"""
