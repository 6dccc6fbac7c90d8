-- Reads of the log. `events` holds records; a reader asks for events behind or below a version or position.

-- name: head
SELECT max(version) FROM events WHERE stream = :stream;

-- name: last_position
-- Behind every record that there is and every one that was deleted.
SELECT max(value, coalesce((SELECT max(position) FROM events), 0)) FROM positions_floor;

-- name: stream_forwards
-- A packed record belongs in as soon as its last event is behind :after.
SELECT position, stream, version, count, id, type, schema, data, metadata, recorded_at
FROM events
WHERE stream = :stream AND version > :after
ORDER BY version
LIMIT :limit;

-- name: stream_backwards
-- A packed record belongs in as soon as its first event is below :below. At most one record straddles it: the first
-- whose version is not smaller; what lies behind that one need not be looked at.
SELECT position, stream, version, count, id, type, schema, data, metadata, recorded_at
FROM events
WHERE stream = :stream
  AND version <= coalesce(
      (SELECT min(version) FROM events WHERE stream = :stream AND version >= :below), 9223372036854775807)
  AND version - count + 1 < :below
ORDER BY version DESC
LIMIT :limit;

-- name: streams
-- CROSS JOIN: for each name in turn one range of the index, hence already in order.
SELECT e.position, e.stream, e.version, e.count, e.id, e.type, e.schema, e.data, e.metadata, e.recorded_at
FROM json_each(:streams) AS wanted
CROSS JOIN events AS e INDEXED BY events_by_stream ON e.stream = wanted.value;

-- name: log
SELECT position, stream, version, count, id, type, schema, data, metadata, recorded_at
FROM events
WHERE position > :after
ORDER BY position
LIMIT :limit;

-- name: log_filtered
-- :types and :categories are JSON arrays; an empty one lets all through. The type of a packed record is the sorted
-- types of its facts joined by '+'. A stream's category is its name up to the first '-'.
WITH wanted_type(value) AS MATERIALIZED (SELECT value FROM json_each(:types)),
     wanted_category(value) AS MATERIALIZED (SELECT value FROM json_each(:categories))
SELECT position, stream, version, count, id, type, schema, data, metadata, recorded_at
FROM events
WHERE position > :after
  AND (:types = '[]'
       OR type IN (SELECT value FROM wanted_type)
       OR (instr(type, '+') > 0
           AND EXISTS (SELECT 1 FROM wanted_type AS w WHERE instr('+' || type || '+', '+' || w.value || '+') > 0)))
  AND (:categories = '[]'
       OR substr(stream, 1, instr(stream || '-', '-') - 1) IN (SELECT value FROM wanted_category))
ORDER BY position
LIMIT :limit;

-- name: unit_start
-- Where the record of that id stands, and whether it is the first of its unit (part 0).
SELECT position, part FROM events WHERE id = :id;

-- name: unit_records
-- From a unit's first record on; the reader stops at the next unit's (part 0).
SELECT position, stream, version, count, part, id, type, data FROM events WHERE position >= :position ORDER BY position;

-- name: row_unit
SELECT 1 FROM units WHERE id = :id;

-- name: prune_units
-- Rows stand in order of writing, so the oldest are the first.
DELETE FROM units WHERE at < :before AND rowid IN (SELECT rowid FROM units ORDER BY rowid LIMIT :limit);

-- name: streams_page
-- Hops from stream to stream over the index; it does not read the events between. Versions have no gaps, so a stream's
-- version is the number of its events.
WITH RECURSIVE page(stream, n) AS (
    SELECT min(stream), 1 FROM events WHERE stream > :after AND stream >= :prefix
    UNION ALL
    SELECT (SELECT min(e.stream) FROM events AS e WHERE e.stream > page.stream), n + 1
    FROM page
    WHERE n < :limit AND substr(page.stream, 1, length(:prefix)) = :prefix
)
SELECT e.stream, e.version, e.version AS events, e.recorded_at AS last_at
FROM page
CROSS JOIN events AS e
WHERE substr(page.stream, 1, length(:prefix)) = :prefix
  AND e.stream = page.stream
  AND e.version = (SELECT max(version) FROM events WHERE stream = page.stream)
  AND :limit > 0
ORDER BY e.stream;

-- name: totals
SELECT (SELECT coalesce(sum(count), 0) FROM events) AS events,
       (SELECT count(DISTINCT stream) FROM events) AS streams,
       (SELECT count(*) FROM sagas) AS sagas;
