"""Recipes, run from a checkout: `python -m tasks` lists them."""

import os
import signal
import sys


def _leave(number: int, _: object) -> None:
    """Nothing has begun: importing takes seconds, in which a traceback would say nothing."""
    name = signal.Signals(number).name
    print(f"stopped by {name}: nothing is under way", file=sys.stderr, flush=True)
    os._exit(128 + number)


# Python is looking for the module that `-m` names; once it runs, it handles signals itself.
if sys.argv[0] == "-m":
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(_number, _leave)
