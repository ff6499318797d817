"""Names, directions and formats of metrics."""
