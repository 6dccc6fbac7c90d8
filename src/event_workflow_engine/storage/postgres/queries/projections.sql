-- Reads and claims over projections: checkpoints, documents, what is parked.

-- name: checkpoints_all
SELECT * FROM ewe.checkpoints ORDER BY name;

-- name: projections_all
SELECT * FROM ewe.projections ORDER BY name;

-- name: documents_find
-- A flag is no number; numbers are equal across integer and real. In order come: nothing, numbers with flags as 0 and 1,
-- then text. In jsonb no text can hold NUL, so 00 is compared as 01 10 and 01 as 01 11, which keeps order and difference.
WITH wanted AS MATERIALIZED (
    SELECT regexp_replace(:where::text, '(?<!\\)((?:\\\\)*)\\u000([01])', '\1\\u0001\\u001\2', 'g')::jsonb AS fields,
           regexp_replace(:order_by::text, '(?<!\\)((?:\\\\)*)\\u000([01])', '\1\\u0001\\u001\2', 'g')::jsonb #>> '{}'
               AS place
)
SELECT projection, generation, key, body
FROM (
    SELECT d.projection, d.generation, d.key, d.body,
           (CASE WHEN strpos(d.body, '\u000') = 0 THEN d.body
                 ELSE regexp_replace(d.body, '(?<!\\)((?:\\\\)*)\\u000([01])', '\1\\u0001\\u001\2', 'g')
            END)::jsonb AS fields
    FROM ewe.documents AS d
    WHERE d.projection = :projection AND d.generation = :generation
) AS d
CROSS JOIN wanted
CROSS JOIN LATERAL (
    SELECT CASE WHEN jsonb_typeof(d.fields) = 'object' THEN d.fields -> wanted.place END AS value
) AS o
CROSS JOIN LATERAL (
    SELECT CASE jsonb_typeof(o.value)
               WHEN 'number' THEN (o.value #>> '{}')::numeric
               WHEN 'boolean' THEN (o.value #>> '{}')::boolean::integer::numeric
           END AS number,
           CASE WHEN jsonb_typeof(o.value) IN ('string', 'object', 'array') THEN o.value #>> '{}' END AS text
) AS place
WHERE wanted.fields = '{}'
   OR NOT EXISTS (
       SELECT FROM jsonb_each(wanted.fields) AS w
       WHERE NOT coalesce(jsonb_typeof(d.fields) = 'object' AND d.fields ? w.key AND d.fields -> w.key = w.value, FALSE))
ORDER BY
    CASE WHEN :descending::bigint = 0 THEN (place.text IS NOT NULL)::integer * 2 + (place.number IS NOT NULL)::integer END,
    CASE WHEN :descending::bigint = 0 THEN place.number END,
    CASE WHEN :descending::bigint = 0 THEN place.text END COLLATE "C",
    CASE WHEN :descending::bigint <> 0 THEN (place.text IS NOT NULL)::integer * 2 + (place.number IS NOT NULL)::integer
    END DESC,
    CASE WHEN :descending::bigint <> 0 THEN place.number END DESC,
    CASE WHEN :descending::bigint <> 0 THEN place.text END COLLATE "C" DESC,
    key
LIMIT :limit OFFSET :offset;

-- name: documents_by_keys
SELECT projection, generation, key, body FROM ewe.documents
WHERE projection = :projection AND generation = :generation AND key IN (SELECT jsonb_array_elements_text(:keys::jsonb))
ORDER BY key;

-- name: parked_keys_page
SELECT * FROM ewe.parked_keys WHERE projection = :projection AND generation = :generation ORDER BY key;

-- name: parked_events_page
SELECT * FROM ewe.parked_events
WHERE projection = :projection AND generation = :generation AND (:key::text IS NULL OR key = :key)
ORDER BY position, key
LIMIT :limit;

-- name: parked_count
SELECT count(*) AS n FROM ewe.parked_events WHERE projection = :projection AND generation = :generation;

-- name: delete_documents
-- changes: documents, parked_keys, parked_events
DELETE FROM ewe.documents WHERE projection = :projection AND generation = :generation;

DELETE FROM ewe.parked_keys WHERE projection = :projection AND generation = :generation;

DELETE FROM ewe.parked_events WHERE projection = :projection AND generation = :generation;

-- name: swap_projection
-- returns: projections
-- Runs under the store's lock, so the log's end that it sees is the end.
UPDATE ewe.projections SET generation = :shadow, version = :version, shadow = NULL,
                           inline_from = CASE WHEN mode = 'inline' THEN :position::bigint END
WHERE name = :name AND shadow = :shadow
  AND :position::bigint = (SELECT position FROM ewe.checkpoints
                           WHERE name = 'projection:' || :name::text || '@' || :shadow::bigint)
  AND :position::bigint = (SELECT coalesce(max(position), 0) FROM ewe.events)
RETURNING xmin::text::bigint AS row_version, projections.*;
