"""Set up before any test imports torch."""

import os

# The nets of the tests are tiny: more threads only wait for each other, for minutes on a busy
# machine. Processes that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
