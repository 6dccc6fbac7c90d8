-- Reads of the log. `events` holds records; a reader asks for events behind or below a version or position.

-- name: head
SELECT version FROM ewe.events WHERE stream = :stream ORDER BY version DESC LIMIT 1;

-- name: heads
SELECT asked.stream, 1 AS number, e.version, 0 AS position
FROM unnest(:streams::text[]) AS asked(stream)
CROSS JOIN LATERAL (
    SELECT version FROM ewe.events WHERE stream = asked.stream ORDER BY version DESC LIMIT 1) AS e;

-- name: last_position
SELECT coalesce(max(position), 0) FROM ewe.events;

-- name: log_end
SELECT position, id FROM ewe.events ORDER BY position DESC LIMIT 1;

-- name: written_position
-- Under the store's lock the same, but for gaps; without it maybe one that is not committed yet.
SELECT last_value FROM ewe.positions;

-- name: server_age
SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::double precision AS seconds;

-- name: commits
SELECT last_value FROM ewe.commits;

-- name: stream_forwards
SELECT position, stream, version, count, id, type, schema, data, metadata, recorded_at FROM ewe.events
WHERE stream = :stream AND version > :after
ORDER BY version
LIMIT :limit;

-- name: stream_backwards
-- Down from the record that holds event :below.
SELECT position, stream, version, count, id, type, schema, data, metadata, recorded_at FROM ewe.events
WHERE stream = :stream AND version - count + 1 < :below
  AND version <= coalesce(
      (SELECT version FROM ewe.events WHERE stream = :stream AND version >= :below ORDER BY version LIMIT 1),
      9223372036854775807)
ORDER BY version DESC
LIMIT :limit;

-- name: streams_forwards
SELECT e.position, e.stream, e.version, e.count, e.id, e.type, e.schema, e.data, e.metadata, e.recorded_at
FROM unnest(:streams::text[]) AS asked(stream)
CROSS JOIN LATERAL (SELECT * FROM ewe.events WHERE stream = asked.stream ORDER BY version) AS e;

-- name: log
-- Where :seen, the record at :after comes first: in one statement, for the next may be answered by another server.
SELECT position, stream, version, count, id, type, schema, data, metadata, recorded_at FROM ewe.events
WHERE :seen::boolean AND position = :after
UNION ALL
(SELECT position, stream, version, count, id, type, schema, data, metadata, recorded_at FROM ewe.events
 WHERE position > :after
 ORDER BY position
 LIMIT :limit)
ORDER BY position;

-- name: log_filtered
-- An empty list lets all through. The type of a packed record is the sorted types of its facts joined by '+'. A stream's
-- category is its name up to the first '-'.
SELECT position, stream, version, count, id, type, schema, data, metadata, recorded_at FROM ewe.events
WHERE :seen::boolean AND position = :after
UNION ALL
(SELECT position, stream, version, count, id, type, schema, data, metadata, recorded_at FROM ewe.events
 WHERE position > :after
   AND (:types::text[] = '{}'
        OR type = ANY (:types::text[])
        OR (strpos(type, '+') > 0
            AND EXISTS (SELECT FROM unnest(:types::text[]) AS w(type)
                        WHERE strpos('+' || events.type || '+', '+' || w.type || '+') > 0)))
   AND (:categories::text[] = '{}' OR split_part(stream, '-', 1) = ANY (:categories::text[]))
 ORDER BY position
 LIMIT :limit)
ORDER BY position;

-- name: known_records
SELECT id FROM ewe.events WHERE id = ANY (:ids::text[]);

-- name: known_units
SELECT id FROM ewe.units WHERE id = ANY (:ids::text[]);

-- name: landed_units
SELECT id FROM ewe.events WHERE id = ANY (:ids::text[])
UNION ALL SELECT id FROM ewe.units WHERE id = ANY (:ids::text[]);

-- name: unit_records
-- A unit's records from its first on, and no more of those behind it than there is need to see where it ends.
SELECT position, stream, version, count, part, id, type, data FROM ewe.events
WHERE position >= (SELECT position FROM ewe.events WHERE id = :id AND part = 0)
  AND position <= coalesce(
      (SELECT next.position FROM ewe.events AS first
       JOIN ewe.events AS next ON next.position > first.position AND next.part = 0
       WHERE first.id = :id AND first.part = 0
       ORDER BY next.position LIMIT 1),
      9223372036854775807)
ORDER BY position;

-- name: prune_units
DELETE FROM ewe.units WHERE id IN (SELECT id FROM ewe.units WHERE at < :before ORDER BY at LIMIT :limit);

-- name: streams_page
-- From name to name along the index, for the log has many records of one stream. Versions have no gaps, so a stream's
-- version is the number of its events.
WITH RECURSIVE names(stream, number) AS (
    (SELECT stream, 1::bigint FROM ewe.events
     WHERE stream > :after AND stream >= :prefix ORDER BY stream LIMIT 1)
    UNION ALL
    SELECT e.stream, names.number + 1
    FROM names CROSS JOIN LATERAL (
        SELECT stream FROM ewe.events WHERE events.stream > names.stream ORDER BY events.stream LIMIT 1) AS e
    WHERE names.number < :limit::bigint
)
SELECT names.stream, e.version, e.version AS events, e.recorded_at AS last_at
FROM names CROSS JOIN LATERAL (
    SELECT version, recorded_at FROM ewe.events WHERE stream = names.stream ORDER BY version DESC LIMIT 1) AS e
WHERE starts_with(names.stream, :prefix) AND :limit::bigint > 0
ORDER BY names.stream;

-- name: estimates
-- As the server's own statistics have it, which follow the tables from afar.
SELECT c.relname::text AS name, greatest(0, c.reltuples, pg_stat_get_live_tuples(c.oid))::bigint AS n
FROM pg_class AS c
WHERE c.oid IN ('ewe.events'::regclass, 'ewe.sagas'::regclass)
ORDER BY c.relname;

-- name: log_size
SELECT pg_total_relation_size('ewe.events') AS log_size;
