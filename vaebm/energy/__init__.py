"""The energy network, and the reader of published ones (VAEBM appendix E)."""
