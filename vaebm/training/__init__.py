"""What the trainings share: the loop (resume, history, limits) and the spectral penalty."""
