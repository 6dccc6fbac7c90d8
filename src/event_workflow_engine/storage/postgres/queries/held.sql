-- A store that is held as a whole: its rows in order, page by page, and what is set when they were put.

-- name: begin_held
-- Several statements in one message. Who holds the store reads and writes elsewhere meanwhile, but not for ever. Rows
-- just put have no statistics yet, and each page is the next stretch of an index whatever the planner thinks of them.
-- What it then takes for costly it is not to compile.
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

SET LOCAL idle_in_transaction_session_timeout = '10min';

SET LOCAL statement_timeout = 0;

SET LOCAL enable_seqscan = off;

SET LOCAL enable_bitmapscan = off;

SET LOCAL jit = off;

SELECT ewe.lock_store();

-- name: held_events
-- A page ends with the row that makes it :bytes long, which is told without reading what is kept apart from the rows.
SELECT position, stream, version, count, part, id, type, schema, data, metadata, recorded_at FROM (
    SELECT *, sum(octet_length(data) + octet_length(metadata))
        OVER (ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM ewe.events
    WHERE position > :position
    ORDER BY position
    LIMIT :limit) AS page
WHERE coalesce(bytes_before, 0) < :bytes
ORDER BY position;

-- name: held_events_by_stream
SELECT position, stream, version, count, part, id, type, schema, data, metadata, recorded_at FROM (
    SELECT *, sum(octet_length(data) + octet_length(metadata))
        OVER (ORDER BY stream, version ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM ewe.events
    WHERE (stream, version) > (:stream, :version)
    ORDER BY stream, version
    LIMIT :limit) AS page
WHERE coalesce(bytes_before, 0) < :bytes
ORDER BY stream, version;

-- name: held_units
SELECT id, at FROM ewe.units
WHERE (at, id) > (:at, :id)
ORDER BY at, id
LIMIT :limit;

-- name: held_tables
SELECT tablename AS name FROM pg_tables WHERE schemaname = :schema ORDER BY tablename;

-- name: held_awaited
-- Whether somebody waits for the lock of lock_store, whose 64 bits are shown as two halves.
SELECT EXISTS (
    SELECT 1 FROM pg_locks AS l
    CROSS JOIN (SELECT hashtextextended('event-workflow-engine ewe.', 0) AS key) AS ours
    WHERE l.locktype = 'advisory' AND NOT l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.classid::bigint = ((ours.key >> 32) & 4294967295) AND l.objid::bigint = (ours.key & 4294967295)) AS awaited;

-- name: move_end
SELECT setval('ewe.positions', greatest(:position::bigint, (SELECT last_value FROM ewe.positions)));

-- name: identity
SELECT pg_postmaster_start_time()::text || ' ' || current_database() AS identity;
