"""`python -m mcvd` is `mcvd`."""

import sys

from mcvd.cli.main import main

sys.exit(main())
