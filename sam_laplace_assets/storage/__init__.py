"""How each thing lies on disk, one module a format. FORMATS.md lists the layouts."""
