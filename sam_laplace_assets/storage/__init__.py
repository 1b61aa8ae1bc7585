"""How each thing lies on disk, one module a format. FORMATS.md lists the layouts."""

import os

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own choice holds 28 MiB to read a table of 1
