"""Inference-only forms of layers, used in exported graphs."""
