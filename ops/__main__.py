"""``python3 -m ops``."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - to say so, rather than to end in a traceback
    sys.exit("python3 is Python {}.{} here, and ops needs 3.10 or newer".format(*sys.version_info[:2]))

from .cli import main

sys.exit(main())
