"""The command line, `ewe`. Imported by nothing but its entry point: the library itself needs none of it."""
