"""`python -m resbackbones.report README.md [--check]`."""

import sys

from resbackbones.report.readme import main

sys.exit(main())
