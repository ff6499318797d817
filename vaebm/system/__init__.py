"""Machine and files: errors, devices, processes, checkpoints, logs, provenance; independent of models."""
