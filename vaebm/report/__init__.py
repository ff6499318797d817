"""The results: over the seeds, beside the paper's, as table, LaTeX and page, and two of them side by side."""
