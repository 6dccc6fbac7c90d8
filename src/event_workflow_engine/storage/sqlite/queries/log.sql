-- Reads of the log. `events` holds records; a reader asks for events behind or below a version or position.
--
-- A stream is walked along its chain, from a later record to earlier ones; in a damaged file too it goes only down, so
-- it ends. Readers turn the result round.

-- name: head
SELECT version FROM streams WHERE name = :stream;

-- name: log_end
SELECT position, id FROM events WHERE position = (SELECT max(position) FROM events);

-- name: last_position
-- Behind every record that there is and every one that was deleted.
SELECT max(value, coalesce((SELECT max(position) FROM events), 0)) FROM positions_floor;

-- name: stream_walk
-- Records with events behind :after, the last first, beginning at the first anchor that has version :upto or more, or
-- at the stream's end where there is no such anchor.
WITH RECURSIVE walk(position) AS (
    SELECT coalesce(
        (SELECT a.position FROM events AS a INDEXED BY events_anchors
         WHERE a.stream = s.number AND a.version >= :upto AND a.version / 64 <> (a.version - a.count) / 64
         ORDER BY a.version LIMIT 1),
        s.position)
    FROM streams AS s WHERE s.name = :stream
    UNION ALL
    SELECT e.before FROM walk CROSS JOIN events AS e ON e.position = walk.position
    WHERE e.before BETWEEN 1 AND e.position - 1 AND e.version - e.count > :after
)
SELECT e.position, :stream, e.version, e.count, e.id, e.type, e.schema, e.data, e.metadata, e.recorded_at
FROM walk CROSS JOIN events AS e ON e.position = walk.position
WHERE e.version > :after;

-- name: stream_backwards
-- Records with events below :below, the last first.
WITH RECURSIVE walk(position) AS (
    SELECT coalesce(
        (SELECT a.position FROM events AS a INDEXED BY events_anchors
         WHERE a.stream = s.number AND a.version >= :below AND a.version / 64 <> (a.version - a.count) / 64
         ORDER BY a.version LIMIT 1),
        s.position)
    FROM streams AS s WHERE s.name = :stream
    UNION ALL
    SELECT e.before FROM walk CROSS JOIN events AS e ON e.position = walk.position
    WHERE e.before BETWEEN 1 AND e.position - 1
)
SELECT e.position, :stream, e.version, e.count, e.id, e.type, e.schema, e.data, e.metadata, e.recorded_at
FROM walk CROSS JOIN events AS e ON e.position = walk.position
WHERE e.version - e.count + 1 < :below
LIMIT :limit;

-- name: streams_walk
-- All records of the streams in the JSON array :streams, each stream's last first, the streams mixed.
WITH RECURSIVE walk(position, name) AS (
    SELECT s.position, s.name FROM json_each(:streams) AS wanted CROSS JOIN streams AS s ON s.name = wanted.value
    UNION ALL
    SELECT e.before, walk.name FROM walk CROSS JOIN events AS e ON e.position = walk.position
    WHERE e.before BETWEEN 1 AND e.position - 1
)
SELECT e.position, walk.name, e.version, e.count, e.id, e.type, e.schema, e.data, e.metadata, e.recorded_at
FROM walk CROSS JOIN events AS e ON e.position = walk.position;

-- name: log
SELECT e.position, s.name, e.version, e.count, e.id, e.type, e.schema, e.data, e.metadata, e.recorded_at
FROM events AS e CROSS JOIN streams AS s ON s.number = e.stream
WHERE e.position > :after
ORDER BY e.position
LIMIT :limit;

-- name: log_filtered
-- :types and :categories are JSON arrays; an empty one lets all through. The type of a packed record is the sorted
-- types of its facts joined by '+'. A stream's category is its name up to the first '-'.
WITH wanted_type(value) AS MATERIALIZED (SELECT value FROM json_each(:types)),
     wanted_category(value) AS MATERIALIZED (SELECT value FROM json_each(:categories))
SELECT e.position, s.name, e.version, e.count, e.id, e.type, e.schema, e.data, e.metadata, e.recorded_at
FROM events AS e CROSS JOIN streams AS s ON s.number = e.stream
WHERE e.position > :after
  AND (:types = '[]'
       OR e.type IN (SELECT value FROM wanted_type)
       OR (instr(e.type, '+') > 0
           AND EXISTS (SELECT 1 FROM wanted_type AS w WHERE instr('+' || e.type || '+', '+' || w.value || '+') > 0)))
  AND (:categories = '[]'
       OR substr(s.name, 1, instr(s.name || '-', '-') - 1) IN (SELECT value FROM wanted_category))
ORDER BY e.position
LIMIT :limit;

-- name: unit_start
-- Where the record of that id stands, and whether it is the first of its unit (part 0).
SELECT position, part FROM events INDEXED BY events_loose WHERE id = :id AND id_order = 2
UNION ALL
SELECT e.position, e.part
FROM (SELECT position FROM events INDEXED BY events_landmarks WHERE id_order = 1 AND id <= :id ORDER BY id DESC LIMIT 1)
     AS landmark
CROSS JOIN events AS e ON e.position >= landmark.position AND e.position < landmark.position + 64
WHERE e.id = :id AND e.id_order < 2;

-- name: unit_records
-- From a unit's first record on; the reader stops at the next unit's (part 0).
SELECT e.position, s.name, e.version, e.count, e.part, e.id, e.type, e.data
FROM events AS e CROSS JOIN streams AS s ON s.number = e.stream
WHERE e.position >= :position
ORDER BY e.position;

-- name: row_unit
SELECT 1 FROM units WHERE id = :id;

-- name: prune_units
-- Rows stand in order of writing, so the oldest are the first.
DELETE FROM units WHERE at < :before AND rowid IN (SELECT rowid FROM units ORDER BY rowid LIMIT :limit);

-- name: streams_page
-- Versions have no gaps, so a stream's version is the number of its events. The names with a prefix are one range.
SELECT s.name AS stream, s.version, s.version AS events, e.recorded_at AS last_at
FROM streams AS s LEFT JOIN events AS e ON e.position = s.position
WHERE s.name > :after AND s.name >= :prefix AND substr(s.name, 1, length(:prefix)) = :prefix
ORDER BY s.name
LIMIT :limit;

-- name: last_stream
-- The largest number that a stream has.
SELECT coalesce(max(number), 0) FROM streams;

-- name: id_order
-- The first landmark's id, the last id in order, and the last landmark's position: nulls where there is none.
SELECT (SELECT id FROM events INDEXED BY events_landmarks WHERE id_order = 1 ORDER BY id LIMIT 1),
       (SELECT e.id FROM events AS e
        WHERE e.position >= landmark.position AND e.position < landmark.position + 64 AND e.id_order < 2
        ORDER BY e.position DESC LIMIT 1),
       landmark.position
FROM (SELECT 1) LEFT JOIN
     (SELECT position FROM events INDEXED BY events_landmarks WHERE id_order = 1 ORDER BY id DESC LIMIT 1) AS landmark;

-- name: loose_from
-- The first loose id that is :id or above it.
SELECT id FROM events INDEXED BY events_loose WHERE id_order = 2 AND id >= :id ORDER BY id LIMIT 1;

-- name: estimates
-- By the last of each: exact as long as nothing was deleted.
SELECT (SELECT coalesce(max(number), 0) FROM streams) AS streams,
       (SELECT coalesce(max(rowid), 0) FROM sagas) AS sagas;

-- name: make_log_longer
-- Run to be rolled back. Any table with a large value and no index over it would do.
INSERT INTO snapshots (stream, type, state) VALUES ('', '', zeroblob(:size));
