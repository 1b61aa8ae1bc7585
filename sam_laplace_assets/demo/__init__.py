"""Demo images with masks and a toy SAM, so that the platform runs before anyone has configured it."""
