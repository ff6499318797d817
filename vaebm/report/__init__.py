"""Aggregation over seeds, tables, LaTeX, HTML report, and comparison of results."""
