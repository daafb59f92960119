"""Structured pruning: smaller models of the same class, and what of them to keep."""
