"""`python -m sparsedrop` is the command `sparsedrop`."""

import sys

from sparsedrop.cli import main

sys.exit(main())
