"""Measures a bundle on this machine: time, memory and energy of the whole road, and what its pictures and filters are biased to.

Knows nothing of the command line. Nothing that is rendered here leaves: a measured picture is counted and dropped.
"""
