"""The terminal without the words of other packages: their warnings, log lines and progress bars.

    with quiet_packages():
        import transformers

What they warn of goes to the log of the run instead. Our own warnings are printed. An
error of theirs is still an exception.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from overrefusal_po.report.terminal import logger, say

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TQDM_DISABLE": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "GLOG_minloglevel": "2",
}
"""Variables that packages read when they are imported. One that the user has set stays."""


class OwnWarnings(logging.Handler):
    """Our own warnings on stderr, unless our log has a handler already; nothing of others."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the record if it is ours."""
        ours = record.name.partition(".")[0] == logger.name
        if ours and not logger.handlers:
            say(record.getMessage(), error=True)


@contextmanager
def quiet_packages() -> Iterator[None]:
    """Within, other packages print nothing: their variables are set, and their log is caught."""
    added = {key: value for key, value in QUIET.items() if key not in os.environ}
    os.environ.update(added)
    # a record that no handler takes would be printed by Python itself
    own = OwnWarnings(logging.WARNING)
    logging.getLogger().addHandler(own)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(own)
        for key in added:
            os.environ.pop(key, None)
