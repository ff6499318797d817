"""What results are called, which way is better, and how they are written."""
