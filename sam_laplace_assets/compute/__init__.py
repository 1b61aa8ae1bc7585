"""Shares of a plan's tasks, made by Dask's workers on other machines, or by several here."""
