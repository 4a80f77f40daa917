"""The loud lines of a run that goes on although something is wrong."""

import sys

from tqdm import tqdm


def warn(text: str) -> None:
    """One line on stderr, from any thread, beside a progress bar that may be there."""
    tqdm.write(f"warning: {text}", file=sys.stderr)
    sys.stderr.flush()
