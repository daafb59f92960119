"""Run functions of this package in separate processes."""
