"""`python -m safetune` is the `safetune` command."""

import sys

from safetune.cli import main

sys.exit(main())
