"""`python -m sparsedrop` is the command `sparsedrop`."""

import sys

from sparsedrop.tools.cli import main

sys.exit(main())
