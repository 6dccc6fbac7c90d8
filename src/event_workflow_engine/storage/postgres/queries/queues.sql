-- Reads for queues: what there is to do, who waits, who runs.

-- name: queues_all
SELECT * FROM ewe.queues ORDER BY name;

-- name: queue_counts
SELECT q.queue, CASE WHEN q.state >= 2 AND s.state = 'NEEDS_INTERVENTION' THEN -1 ELSE q.state END AS state, count(*) AS n
FROM ewe.queued AS q LEFT JOIN ewe.sagas AS s ON s.id = q.saga
GROUP BY 1, 2
ORDER BY 1, 2;

-- name: queue_work
SELECT q.*,
       (SELECT min(not_before) FROM ewe.queued WHERE queue = q.name AND state = 0) AS early,
       (EXISTS (SELECT 1 FROM ewe.queued WHERE queue = q.name AND state = 1))::int AS waiting,
       (EXISTS (SELECT 1 FROM ewe.queued WHERE queue = q.name AND state >= 2 AND state = 3))::int AS returned,
       (EXISTS (SELECT 1 FROM ewe.sagas AS s WHERE s.owner = 'queue:' || q.name AND s.owner <> '' AND s.ended_at IS NULL AND s.wake_at IS NOT NULL))::int AS woken
FROM ewe.queues AS q
ORDER BY q.name;

-- name: queue_early
SELECT * FROM ewe.queued WHERE queue = :queue AND state = 0 AND not_before <= :now ORDER BY not_before, saga LIMIT :limit;

-- name: queue_heads
-- The partitions are met by leaps along the index, so the cost goes with their number, not with that of the waiting. How
-- few of a partition are asked for is not known when this is planned: OFFSET keeps it from joining all of them at once.
WITH RECURSIVE parts AS (
    (SELECT partition FROM ewe.queued WHERE queue = :queue AND state = 1 ORDER BY partition LIMIT 1)
    UNION ALL
    SELECT (SELECT w.partition FROM ewe.queued AS w
            WHERE w.queue = :queue AND w.state = 1 AND w.partition > parts.partition
            ORDER BY w.partition LIMIT 1)
    FROM parts WHERE parts.partition IS NOT NULL),
share AS (
    SELECT greatest(1, least(:each, :most / greatest(1, count(partition)))) AS each FROM parts)
SELECT head.*, share.each FROM share CROSS JOIN parts CROSS JOIN LATERAL (
    SELECT q.*, s.fence FROM ewe.queued AS q CROSS JOIN LATERAL (
        SELECT one.fence FROM ewe.sagas AS one
        WHERE one.id = q.saga
          AND jsonb_build_array(one.saga, one.saga_version) IN (SELECT jsonb_array_elements(:sagas::jsonb))
        OFFSET 0) AS s
    WHERE q.queue = :queue AND q.state = 1 AND q.partition = parts.partition
    ORDER BY q.priority DESC, q.enqueued_at, q.saga
    LIMIT (SELECT each FROM share)) AS head
ORDER BY head.partition, head.priority DESC, head.enqueued_at, head.saga;

-- name: queue_returned
SELECT q.*, s.fence FROM ewe.queued AS q JOIN ewe.sagas AS s ON s.id = q.saga
WHERE q.queue = :queue AND q.state >= 2 AND q.state = 3
  AND jsonb_build_array(s.saga, s.saga_version) IN (SELECT jsonb_array_elements(:sagas::jsonb))
ORDER BY q.enqueued_at, q.saga
LIMIT :limit;

-- name: queue_running
SELECT q.partition, count(*) AS running,
       count(*) FILTER (WHERE s.state = 'NEEDS_INTERVENTION') AS standing
FROM ewe.queued AS q LEFT JOIN ewe.sagas AS s ON s.id = q.saga
WHERE q.queue = :queue AND q.state >= 2
GROUP BY q.partition
ORDER BY q.partition;

-- name: queue_place
SELECT count(*) AS n FROM ewe.queued
WHERE queue = :queue AND state = 1 AND partition = :partition
  AND (priority > :priority OR (priority = :priority AND (enqueued_at, saga) < (:enqueued_at, :saga)));
