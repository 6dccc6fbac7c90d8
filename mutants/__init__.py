"""Small faults put into the modules that decide, one at a time: does a test fail? See README.md."""
