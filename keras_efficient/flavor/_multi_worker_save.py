"""Save a model from several workers, so that only the first one's file remains."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def save_on_all_workers(
    plain: Callable, strategy_class: type, model: Any, filepath: Any, *args: Any, **kwargs: Any
) -> Any:
    """Call a library's `save_model` or `save_weights` on every worker and keep the chief's file.

    Every worker must take part, because reading a variable that is summed over replicas needs all
    of them. The other workers write to a temporary folder.

    Args:
        plain: The library's function.
        strategy_class: Only models made under a strategy of this class are treated so.
        model: The model.
        filepath: Path to save to.
        *args: Passed on.
        **kwargs: Passed on.

    Raises:
        RuntimeError: Saving failed on another worker.
    """
    strategy = getattr(model, "distribute_strategy", None)
    if not isinstance(strategy, strategy_class):
        return plain(model, filepath, *args, **kwargs)
    workers: Any = strategy
    failure = None
    with tempfile.TemporaryDirectory() as folder:
        if workers.cluster.index > 0:
            filepath = str(Path(folder) / Path(filepath).name)
        try:
            plain(model, filepath, *args, **kwargs)
        except Exception as error:
            failure = error
    # Wait until the file is complete, so that any worker may read it, and fail together.
    complete = workers.agree(failure is None, all)
    if failure is not None:
        raise failure
    if not complete:
        raise RuntimeError(
            "A model is saved by all workers. Received: another worker failed to save it; the "
            "error is in that worker's output. Fix that error and save again."
        )
    return None
