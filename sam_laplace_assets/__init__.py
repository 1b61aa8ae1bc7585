"""Calibrated masks from frozen SAM: Dagster assets from images and masks to a Laplace posterior."""

__version__ = "0.1.0"
