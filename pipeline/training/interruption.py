"""Interruption of a training by Ctrl-C, SIGTERM or an error.

The run is not written, the checkpoints stay, and the same command continues from the latest one.
The exit codes are in `pipeline/cli/console.py`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.data.directory import ChangedDataError
from pipeline.training.checkpoint import Checkpoints, TrainingAbandoned

logger = logging.getLogger(__name__)


@contextmanager
def keep_checkpoints(checkpoints: Checkpoints) -> Iterator[None]:
    """On Ctrl-C or an error, log how to continue.

    On TrainingAbandoned, or if the data have changed, remove the checkpoints.
    """
    try:
        yield
    except (TrainingAbandoned, ChangedDataError):
        checkpoints.remove()
        raise
    except BaseException:
        if checkpoints.processes.is_first and checkpoints.last_step is not None:
            step = f"{checkpoints.last_step:,}"
            logger.info("Interrupted. The same command continues from step %s.", step)
        raise
