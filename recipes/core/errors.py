"""A user's mistake: reported as one line on stderr, exit status 2, no traceback, nothing written."""

import difflib
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

ALONE_AFTER = 5  # seconds
LIBRARIES = ("accelerate", "huggingface_hub", "peft", "transformers", "trl")


class UserError(ValueError):
    """Something the user can put right; the message is one line that says what to change."""

    def __init__(self, message: object):
        super().__init__(" ".join(str(message).split()))


def refused_by_library(error: Exception) -> bool:
    """Whether a library's check of its arguments raised this itself, and not code of ours or something below it."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].partition(".")[0] in LIBRARIES


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown `name`: the nearest known name, or all of them when few.

    Returns:
        `"; did you mean 'x'?"`, `"; known: a, b"`, or an empty string when nothing is near among many.
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 24 else ""


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Turn a `UserError` into one line on stderr and exit status 2.

    Of several processes the first speaks. One that fails alone speaks after a while, in which the launcher would have ended
    it had the first one failed too.
    """
    try:
        yield
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            time.sleep(ALONE_AFTER)
        print(f"error{'' if rank == '0' else f' in process {rank}'}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None
