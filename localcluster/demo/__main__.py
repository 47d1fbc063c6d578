"""`python3 -m localcluster.demo`."""

import sys

from localcluster.demo.story import main

sys.exit(main())
