"""Separate processes that run exported models without Keras."""
