"""The machine and its files: errors, devices, processes, checkpoints, logs, where a result comes from; nothing of the models."""
