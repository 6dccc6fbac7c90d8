-- Servers up to 17 price a scan that is turned off at more than any real work, and the sequence can be read by no other.
-- Above that price a statement is compiled first, where the server can: for milliseconds, to read a single row.
ALTER FUNCTION ewe.commit_batch SET jit = off;
