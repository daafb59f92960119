"""`quiet_logger`: leave out what another library logs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_logger(name: str | None, level: int = logging.ERROR) -> Iterator[None]:
    """Let a logger print nothing below a level, within the context.

    Args:
        name: name of the logger, or None for the root.
        level: the level. Default: `logging.ERROR`.
    """
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
