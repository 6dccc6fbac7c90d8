-- Reads for queues: what there is to do, who waits, who runs.

-- name: queues_all
SELECT * FROM queues ORDER BY name;

-- name: queue_counts
SELECT q.queue, CASE WHEN q.state >= 2 AND s.state = 'NEEDS_INTERVENTION' THEN -1 ELSE q.state END AS state, count(*) AS n
FROM queued AS q LEFT JOIN sagas AS s ON s.id = q.saga
GROUP BY 1, 2
ORDER BY 1, 2;

-- name: queue_work
SELECT q.*,
       (SELECT min(not_before) FROM queued WHERE queue = q.name AND state = 0) AS early,
       EXISTS (SELECT 1 FROM queued WHERE queue = q.name AND state = 1) AS waiting,
       EXISTS (SELECT 1 FROM queued WHERE queue = q.name AND state >= 2 AND state = 3) AS returned,
       EXISTS (SELECT 1 FROM sagas AS s WHERE s.owner = 'queue:' || q.name AND s.owner <> '' AND s.ended_at IS NULL AND s.wake_at IS NOT NULL) AS woken
FROM queues AS q
ORDER BY q.name;

-- name: queue_early
SELECT * FROM queued WHERE queue = :queue AND state = 0 AND not_before <= :now ORDER BY not_before, saga LIMIT :limit;

-- name: queue_heads
-- The partitions are met by leaps along the index, so the cost goes with their number, not with that of the waiting.
WITH RECURSIVE parts(partition) AS (
    SELECT min(partition) FROM queued WHERE queue = :queue AND state = 1
    UNION ALL
    SELECT (SELECT min(w.partition) FROM queued AS w
            WHERE w.queue = :queue AND w.state = 1 AND w.partition > parts.partition)
    FROM parts WHERE parts.partition IS NOT NULL),
share(each) AS (
    SELECT max(1, min(:each, :most / max(1, count(partition)))) FROM parts)
SELECT q.*, s.fence, share.each FROM share CROSS JOIN parts CROSS JOIN queued AS q CROSS JOIN sagas AS s
WHERE s.id = q.saga AND q.saga IN (
    SELECT i.saga FROM queued AS i CROSS JOIN sagas AS s
    WHERE i.queue = :queue AND i.state = 1 AND i.partition = parts.partition AND s.id = i.saga
      AND EXISTS (SELECT 1 FROM json_each(:sagas) AS r
          WHERE json_extract(r.value, '$[0]') = s.saga AND json_extract(r.value, '$[1]') = s.saga_version)
    ORDER BY i.priority DESC, i.enqueued_at, i.saga
    LIMIT (SELECT each FROM share))
ORDER BY q.partition, q.priority DESC, q.enqueued_at, q.saga;

-- name: queue_returned
SELECT q.*, s.fence FROM queued AS q JOIN sagas AS s ON s.id = q.saga
WHERE q.queue = :queue AND q.state >= 2 AND q.state = 3
  AND EXISTS (SELECT 1 FROM json_each(:sagas) AS r
          WHERE json_extract(r.value, '$[0]') = s.saga AND json_extract(r.value, '$[1]') = s.saga_version)
ORDER BY q.enqueued_at, q.saga
LIMIT :limit;

-- name: queue_running
SELECT q.partition, count(*) AS running,
       count(*) FILTER (WHERE s.state = 'NEEDS_INTERVENTION') AS standing
FROM queued AS q LEFT JOIN sagas AS s ON s.id = q.saga
WHERE q.queue = :queue AND q.state >= 2
GROUP BY q.partition
ORDER BY q.partition;

-- name: queue_place
SELECT count(*) AS n FROM queued
WHERE queue = :queue AND state = 1 AND partition = :partition
  AND (priority > :priority OR (priority = :priority AND (enqueued_at, saga) < (:enqueued_at, :saga)));
