"""Measure every variant of a pilot file on the user's model and data, resumably, into one run folder."""
