"""Functions of features and counts: distances, intervals, divergences; no models, no files."""
