"""Elastic images made of 4D-STEM scans: virtual detectors, integrated centre of mass, ptychographic phase.

Each is a signal that ``fuse`` takes as its image.
"""
