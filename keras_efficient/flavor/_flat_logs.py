"""Flatten nested logs as `fit` does."""


def flat_logs(logs: dict) -> dict:
    """Flatten nested logs: {"compile_metrics": {"accuracy": a}} becomes {"accuracy": a}."""
    flat = {}
    for name, value in logs.items():
        flat.update(flat_logs(value) if isinstance(value, dict) else {name: value})
    return flat
