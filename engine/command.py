"""How the tools beside training end: with an exit status, and one line that says what to mend."""

import sys
from collections.abc import Callable


def exit_status(action: Callable[[], None]) -> int:
    """0, or 1 after the text of the user error (ValueError, OSError) that `action` raised.

    Anything else is a defect and keeps its traceback.
    """
    try:
        action()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
