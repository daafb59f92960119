"""Inference-only implementations of layers, used in exported graphs."""
