"""Set up before any test imports torch."""

import os

from hypothesis import settings

# The nets of the tests are tiny: more threads only wait for each other, for minutes on a busy
# machine. Processes that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Seeded like every other test: the same examples each time, and no folder of past ones.
# `--hypothesis-profile=fresh` draws new ones. Neither minds how long one takes: machines differ.
settings.register_profile("seeded", derandomize=True, database=None, deadline=None)
settings.register_profile("fresh", database=None, deadline=None)
settings.load_profile("seeded")
