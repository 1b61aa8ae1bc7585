"""Pure NumPy and PyTorch: what is computed, without files, orchestration or tracking."""
