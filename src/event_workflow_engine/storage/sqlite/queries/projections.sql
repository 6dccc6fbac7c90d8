-- Reads and claims over projections: checkpoints, documents, what is parked.

-- name: checkpoints_all
SELECT * FROM checkpoints ORDER BY name;

-- name: projections_all
SELECT * FROM projections ORDER BY name;

-- name: documents_find
-- Fields are compared through json_each, so that a field's name is a value and never a path. A flag is no number;
-- numbers are equal across integer and real; objects and arrays compare as text. SQLite ends text at NUL, so 00 is
-- compared as 01 10 and 01 as 01 11, which keeps order and difference. An escaped backslash steps aside meanwhile, as a
-- character that no JSON text holds, so that every \u that is left begins an escape.
WITH asked AS MATERIALIZED (
    SELECT replace(replace(replace(replace(json_array(json(:where), json(:order_by)),
               '\\', char(1)), '\u0001', '\u0001\u0011'), '\u0000', '\u0001\u0010'), char(1), '\\') AS terms
)
SELECT projection, generation, key, body FROM (
    SELECT d.projection, d.generation, d.key, d.body,
           CASE WHEN :order_by IS NOT NULL
               THEN (SELECT value FROM json_each(d.fields) WHERE json_each.key = json_extract(d.terms, '$[1]'))
           END AS place
    FROM (
        SELECT projection, generation, key, body, terms,
               CASE WHEN instr(body, '\u000') = 0 THEN body
                    ELSE replace(replace(replace(replace(body,
                        '\\', char(1)), '\u0001', '\u0001\u0011'), '\u0000', '\u0001\u0010'), char(1), '\\')
               END AS fields
        FROM documents CROSS JOIN asked
        WHERE projection = :projection AND generation = :generation
    ) AS d
    WHERE :where = '{}' OR NOT EXISTS (
        SELECT 1 FROM json_each(d.terms, '$[0]') AS w
        WHERE NOT EXISTS (
            SELECT 1 FROM json_each(d.fields) AS f
            WHERE f.key = w.key AND f.value IS w.value
              AND (f.type = w.type OR (f.type IN ('integer', 'real') AND w.type IN ('integer', 'real')))))
)
ORDER BY CASE WHEN :descending THEN NULL ELSE place END,
         CASE WHEN :descending THEN place END DESC,
         key
LIMIT :limit OFFSET :offset;

-- name: documents_by_keys
SELECT projection, generation, key, body FROM documents
WHERE projection = :projection AND generation = :generation AND key IN (SELECT value FROM json_each(:keys))
ORDER BY key;

-- name: parked_keys_page
SELECT * FROM parked_keys WHERE projection = :projection AND generation = :generation ORDER BY key;

-- name: parked_events_page
SELECT * FROM parked_events
WHERE projection = :projection AND generation = :generation AND (:key IS NULL OR key = :key)
ORDER BY position, key
LIMIT :limit;

-- name: parked_count
SELECT count(*) AS n FROM parked_events WHERE projection = :projection AND generation = :generation;

-- name: delete_documents
-- changes: documents, parked_keys, parked_events
DELETE FROM documents WHERE projection = :projection AND generation = :generation;

DELETE FROM parked_keys WHERE projection = :projection AND generation = :generation;

DELETE FROM parked_events WHERE projection = :projection AND generation = :generation;

-- name: swap_projection
-- returns: projections
-- Runs in the writer's transaction, so the log's end that it sees is the end.
UPDATE projections SET generation = :shadow, version = :version, shadow = NULL,
                       inline_from = CASE WHEN mode = 'inline' THEN :position END
WHERE name = :name AND shadow = :shadow
  AND :position = (SELECT position FROM checkpoints WHERE name = 'projection:' || :name || '@' || :shadow)
  AND :position = (SELECT max(value, coalesce((SELECT max(position) FROM events), 0)) FROM positions_floor)
RETURNING *;
