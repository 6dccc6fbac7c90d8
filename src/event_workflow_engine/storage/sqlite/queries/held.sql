-- A store that is held as a whole: its rows in order, and what is set when they were put.

-- name: held_events
SELECT e.position, s.name, e.version, e.count, e.part, e.id, e.type, e.schema, e.data, e.metadata, e.recorded_at
FROM events AS e CROSS JOIN streams AS s ON s.number = e.stream
ORDER BY e.position;

-- name: held_streams
SELECT name FROM streams ORDER BY name;

-- name: held_stream
-- As stream_walk, with the parts.
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
SELECT e.position, :stream, e.version, e.count, e.part, e.id, e.type, e.schema, e.data, e.metadata, e.recorded_at
FROM walk CROSS JOIN events AS e ON e.position = walk.position
WHERE e.version > :after;

-- name: held_units
SELECT id, at FROM units ORDER BY at, id;

-- name: held_tables
SELECT name FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_' ORDER BY name;

-- name: move_end
UPDATE positions_floor SET value = max(value, :position);
