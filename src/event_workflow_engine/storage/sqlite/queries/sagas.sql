-- Reads and claims over the index of sagas, and over workers.

-- name: sagas_page
-- One of three ways. Sagas of a rare definition or state are found by it and sorted by id; what is common, or not asked
-- for, is met soon enough on the way through all ids.
WITH rare(saga, state) AS MATERIALIZED (SELECT
    :saga IS NOT NULL AND (SELECT count(*) FROM (SELECT 1 FROM sagas WHERE saga = :saga LIMIT 5000)) < 5000,
    :state IS NOT NULL AND (SELECT count(*) FROM (SELECT 1 FROM sagas WHERE state = :state LIMIT 5000)) < 5000)
SELECT * FROM sagas INDEXED BY sagas_by_saga
WHERE saga = :saga AND (:state IS NULL OR state = :state) AND id > :after AND (SELECT saga FROM rare)
UNION ALL
SELECT * FROM sagas INDEXED BY sagas_by_state
WHERE state = :state AND (:saga IS NULL OR saga = :saga) AND id > :after AND (SELECT state AND NOT saga FROM rare)
UNION ALL
SELECT * FROM sagas INDEXED BY sqlite_autoindex_sagas_1
WHERE (:saga IS NULL OR saga = :saga) AND (:state IS NULL OR state = :state) AND id > :after
  AND (SELECT NOT (saga OR state) FROM rare)
ORDER BY id
LIMIT :limit;

-- name: sagas_by_ids
SELECT * FROM sagas WHERE id IN (SELECT value FROM json_each(:ids)) ORDER BY id;

-- name: next_wake
-- Of those that nobody has, and of the few that are given to somebody, who has not taken them.
SELECT wake_at FROM (
    SELECT * FROM (
        SELECT wake_at FROM sagas
        WHERE ended_at IS NULL AND owner = '' AND wake_at IS NOT NULL
          AND EXISTS (SELECT 1 FROM json_each(:sagas) AS r
                      WHERE json_extract(r.value, '$[0]') = sagas.saga
                        AND json_extract(r.value, '$[1]') = sagas.saga_version)
        ORDER BY wake_at
        LIMIT 1)
    UNION ALL
    SELECT wake_at FROM sagas INDEXED BY sagas_woken
    WHERE ended_at IS NULL AND owner <> '' AND wake_at IS NOT NULL AND owner >= 'given:' AND owner < 'given;'
      AND EXISTS (SELECT 1 FROM json_each(:sagas) AS r
                  WHERE json_extract(r.value, '$[0]') = sagas.saga
                    AND json_extract(r.value, '$[1]') = sagas.saga_version))
ORDER BY wake_at
LIMIT 1;

-- name: woken_sagas
SELECT * FROM sagas
WHERE owner = :worker AND owner <> '' AND ended_at IS NULL AND wake_at IS NOT NULL
ORDER BY id;

-- name: owned_sagas
SELECT id, fence FROM sagas WHERE owner = :worker AND owner <> '' AND ended_at IS NULL ORDER BY id;

-- name: sagas_count
SELECT state, count(*) AS n FROM sagas GROUP BY state ORDER BY state;

-- name: sagas_count_to
SELECT asked.value AS state,
       (SELECT count(*) FROM (SELECT 1 FROM sagas WHERE state = asked.value LIMIT :limit)) AS n
FROM json_each(:states) AS asked
ORDER BY asked.key;

-- name: sagas_unclaimed
SELECT saga, saga_version, count(*) AS n, min(since) AS since FROM (
    SELECT * FROM (
        SELECT saga, saga_version, wake_at AS since FROM sagas
        WHERE ended_at IS NULL AND owner = '' AND wake_at IS NOT NULL AND wake_at < :before
        ORDER BY wake_at
        LIMIT :limit)
    UNION ALL
    SELECT * FROM (
        SELECT s.saga, s.saga_version, q.enqueued_at AS since
        FROM queues AS named CROSS JOIN queued AS q CROSS JOIN sagas AS s
        WHERE q.queue = named.name AND q.state = 1 AND q.enqueued_at < :before AND s.id = q.saga
        LIMIT :limit))
GROUP BY saga, saga_version
ORDER BY saga, saga_version;

-- name: live_workers
SELECT * FROM workers WHERE alive = 1 ORDER BY id;

-- name: worker_loads
SELECT id, max_running, runs, has + given AS held, given FROM (
    SELECT w.id, w.max_running, w.runs,
        (SELECT count(*) FROM sagas AS s WHERE s.ended_at IS NULL AND s.owner <> '' AND s.owner = w.id) AS has,
        (SELECT count(*) FROM sagas AS s
         WHERE s.ended_at IS NULL AND s.owner <> '' AND s.owner = 'given:' || w.id) AS given
    FROM workers AS w WHERE w.alive = 1)
ORDER BY id;

-- name: claim_sagas
-- returns: sagas
-- First what is given to this worker, then what is due, then what was given to others and not taken in time. Only to a
-- worker that lives: what a dead one got would be found by nobody.
UPDATE sagas SET owner = :worker, fence = coalesce(fence, 0) + 1, wake_at = NULL, waits_for = NULL
WHERE id IN (
    SELECT id FROM (
        SELECT 1 AS turn, id, wake_at FROM sagas INDEXED BY sagas_woken
        WHERE ended_at IS NULL AND owner <> '' AND wake_at IS NOT NULL AND owner = 'given:' || :worker
          AND EXISTS (SELECT 1 FROM json_each(:sagas) AS r
                      WHERE json_extract(r.value, '$[0]') = sagas.saga
                        AND json_extract(r.value, '$[1]') = sagas.saga_version)
        UNION ALL
        SELECT * FROM (
            SELECT 2, id, wake_at FROM sagas
            WHERE ended_at IS NULL AND owner = '' AND wake_at <= :now
              AND EXISTS (SELECT 1 FROM json_each(:sagas) AS r
                          WHERE json_extract(r.value, '$[0]') = sagas.saga
                            AND json_extract(r.value, '$[1]') = sagas.saga_version)
            ORDER BY wake_at, id
            LIMIT :limit)
        UNION ALL
        SELECT 3, id, wake_at FROM sagas INDEXED BY sagas_woken
        WHERE ended_at IS NULL AND owner <> '' AND wake_at IS NOT NULL AND owner >= 'given:' AND owner < 'given;'
          AND wake_at <= :now AND owner <> 'given:' || :worker
          AND EXISTS (SELECT 1 FROM json_each(:sagas) AS r
                      WHERE json_extract(r.value, '$[0]') = sagas.saga
                        AND json_extract(r.value, '$[1]') = sagas.saga_version))
    ORDER BY turn, wake_at, id
    LIMIT :limit)
  AND EXISTS (SELECT 1 FROM workers WHERE workers.id = :worker AND alive = 1)
RETURNING *;

-- name: claim_saga
-- returns: sagas
UPDATE sagas SET owner = :worker, fence = coalesce(fence, 0) + 1, wake_at = NULL, waits_for = NULL
WHERE id = :id AND ended_at IS NULL AND owner = ''
  AND EXISTS (SELECT 1 FROM workers WHERE workers.id = :worker AND alive = 1)
RETURNING *;

-- name: release_sagas
-- returns: sagas
UPDATE sagas SET owner = '', wake_at = :now
WHERE (id, fence) IN (SELECT key, value FROM json_each(:fences)) AND owner = :worker AND ended_at IS NULL
RETURNING *;

-- name: bury_worker
-- changes: workers
-- returns: sagas
-- May be repeated: it frees what a worker that is dead already still owns. One whose heart has beaten since somebody looked lives on.
UPDATE workers SET alive = 0, died_at = CASE WHEN alive = 1 THEN :now ELSE died_at END
WHERE id = :id AND incarnation = :incarnation AND (alive = 0 OR :beat IS NULL OR beat = :beat);

UPDATE sagas SET owner = '', wake_at = :now
WHERE owner IN (:id, 'given:' || :id) AND owner <> '' AND ended_at IS NULL
  AND EXISTS (SELECT 1 FROM workers WHERE workers.id = :id AND incarnation = :incarnation AND alive = 0)
RETURNING *;

-- name: prune_workers
-- changes: workers
DELETE FROM workers
WHERE alive = 0 AND coalesce(died_at, started_at) < :before
  AND NOT EXISTS (SELECT 1 FROM sagas AS s WHERE s.ended_at IS NULL AND s.owner <> '' AND s.owner = workers.id)
  AND NOT EXISTS (SELECT 1 FROM sagas AS s
                  WHERE s.ended_at IS NULL AND s.owner <> '' AND s.owner = 'given:' || workers.id)
  AND NOT EXISTS (SELECT 1 FROM checkpoints AS c WHERE c.owner = workers.id)
  AND NOT EXISTS (SELECT 1 FROM slots AS l WHERE l.worker = workers.id AND l.done = 0);
