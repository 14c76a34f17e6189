"""Sweeps: the members of an experiment, run in turn or as jobs of a cluster, and their results in one file."""
