-- Reads and claims over the index of sagas, and over workers. Claims run under the store's lock, so only a user's own
-- transaction can hold a row; what it holds is skipped and found again.

-- name: sagas_page
SELECT * FROM ewe.sagas
WHERE (:saga::text IS NULL OR saga = :saga) AND (:state::text IS NULL OR state = :state) AND id > :after
ORDER BY id
LIMIT :limit;

-- name: sagas_by_ids
SELECT * FROM ewe.sagas WHERE id IN (SELECT jsonb_array_elements_text(:ids::jsonb)) ORDER BY id;

-- name: next_wake
-- Of those that nobody has, and of the few that are given to somebody, who has not taken them.
SELECT wake_at FROM (
    (SELECT wake_at FROM ewe.sagas
     WHERE ended_at IS NULL AND owner = '' AND wake_at IS NOT NULL
       AND jsonb_build_array(saga, saga_version) IN (SELECT jsonb_array_elements(:sagas::jsonb))
     ORDER BY wake_at
     LIMIT 1)
    UNION ALL
    SELECT wake_at FROM ewe.sagas
    WHERE ended_at IS NULL AND owner <> '' AND wake_at IS NOT NULL AND owner >= 'given:' AND owner < 'given;'
      AND jsonb_build_array(saga, saga_version) IN (SELECT jsonb_array_elements(:sagas::jsonb))) AS waits
ORDER BY wake_at
LIMIT 1;

-- name: woken_sagas
SELECT * FROM ewe.sagas
WHERE owner = :worker AND owner <> '' AND ended_at IS NULL AND wake_at IS NOT NULL
ORDER BY id;

-- name: owned_sagas
SELECT id, fence FROM ewe.sagas WHERE owner = :worker AND owner <> '' AND ended_at IS NULL ORDER BY id;

-- name: sagas_count
SELECT state, count(*) AS n FROM ewe.sagas GROUP BY state ORDER BY state NULLS FIRST;

-- name: sagas_count_to
SELECT asked.state,
       (SELECT count(*) FROM (SELECT FROM ewe.sagas WHERE sagas.state = asked.state LIMIT :limit) AS counted) AS n
FROM jsonb_array_elements_text(:states::jsonb) WITH ORDINALITY AS asked(state, place)
ORDER BY asked.place;

-- name: sagas_unclaimed
SELECT saga, saga_version, count(*) AS n, min(since) AS since FROM (
    (SELECT saga, saga_version, wake_at AS since FROM ewe.sagas
     WHERE ended_at IS NULL AND owner = '' AND wake_at IS NOT NULL AND wake_at < :before
     ORDER BY wake_at
     LIMIT :limit)
    UNION ALL
    (SELECT s.saga, s.saga_version, q.enqueued_at AS since
     FROM ewe.queued AS q JOIN ewe.sagas AS s ON s.id = q.saga
     WHERE q.state = 1 AND q.enqueued_at < :before
     LIMIT :limit)) AS waiting
GROUP BY saga, saga_version
ORDER BY saga, saga_version;

-- name: live_workers
SELECT * FROM ewe.workers WHERE alive = 1 ORDER BY id;

-- name: worker_loads
SELECT id, max_running, runs, has + given AS held, given FROM (
    SELECT w.id, w.max_running, w.runs,
        (SELECT count(*) FROM ewe.sagas AS s WHERE s.ended_at IS NULL AND s.owner <> '' AND s.owner = w.id) AS has,
        (SELECT count(*) FROM ewe.sagas AS s
         WHERE s.ended_at IS NULL AND s.owner <> '' AND s.owner = 'given:' || w.id) AS given
    FROM ewe.workers AS w WHERE w.alive = 1) AS loads
ORDER BY id;

-- name: claim_sagas
-- returns: sagas
-- First what is given to this worker, then what is due, then what was given to others and not taken in time. Only to a
-- worker that lives: what a dead one got would be found by nobody.
UPDATE ewe.sagas SET owner = :worker, fence = coalesce(fence, 0) + 1, wake_at = NULL, waits_for = NULL
WHERE id = ANY ((ARRAY(
    SELECT id FROM ewe.sagas
    WHERE ended_at IS NULL AND owner <> '' AND wake_at IS NOT NULL AND owner = 'given:' || :worker
      AND jsonb_build_array(saga, saga_version) IN (SELECT jsonb_array_elements(:sagas::jsonb))
    ORDER BY wake_at, id
    LIMIT :limit
    FOR UPDATE OF sagas SKIP LOCKED) || ARRAY(
    SELECT id FROM ewe.sagas
    WHERE ended_at IS NULL AND owner = '' AND wake_at <= :now
      AND jsonb_build_array(saga, saga_version) IN (SELECT jsonb_array_elements(:sagas::jsonb))
    ORDER BY wake_at, id
    LIMIT :limit
    FOR UPDATE OF sagas SKIP LOCKED) || ARRAY(
    SELECT id FROM ewe.sagas
    WHERE ended_at IS NULL AND owner <> '' AND wake_at IS NOT NULL AND owner >= 'given:' AND owner < 'given;'
      AND wake_at <= :now AND owner <> 'given:' || :worker
      AND jsonb_build_array(saga, saga_version) IN (SELECT jsonb_array_elements(:sagas::jsonb))
    ORDER BY wake_at, id
    LIMIT :limit
    FOR UPDATE OF sagas SKIP LOCKED))[1 : (:limit)::int])
  AND EXISTS (SELECT FROM ewe.workers WHERE workers.id = :worker AND alive = 1)
RETURNING xmin::text::bigint AS row_version, sagas.*;

-- name: claim_saga
-- returns: sagas
UPDATE ewe.sagas SET owner = :worker, fence = coalesce(fence, 0) + 1, wake_at = NULL, waits_for = NULL
WHERE id = ANY (ARRAY(
    SELECT id FROM ewe.sagas
    WHERE id = :id AND ended_at IS NULL AND owner = ''
      AND EXISTS (SELECT FROM ewe.workers WHERE workers.id = :worker AND alive = 1)
    FOR UPDATE OF sagas SKIP LOCKED))
RETURNING xmin::text::bigint AS row_version, sagas.*;

-- name: release_sagas
-- returns: sagas
UPDATE ewe.sagas SET owner = '', wake_at = :now
WHERE (id, fence) IN (SELECT key, value::bigint FROM jsonb_each_text(:fences::jsonb)) AND owner = :worker AND ended_at IS NULL
RETURNING xmin::text::bigint AS row_version, sagas.*;

-- name: bury_worker
-- changes: workers
-- returns: sagas
-- May be repeated: it frees what a worker that is dead already still owns. One whose heart has beaten since somebody looked lives on.
UPDATE ewe.workers SET alive = 0, died_at = CASE WHEN alive = 1 THEN :now ELSE died_at END
WHERE id = :id AND incarnation = :incarnation AND (alive = 0 OR :beat::bigint IS NULL OR beat = :beat::bigint);

UPDATE ewe.sagas SET owner = '', wake_at = :now
WHERE owner IN (:id, 'given:' || :id) AND owner <> '' AND ended_at IS NULL
  AND EXISTS (SELECT FROM ewe.workers WHERE workers.id = :id AND incarnation = :incarnation AND alive = 0)
RETURNING xmin::text::bigint AS row_version, sagas.*;

-- name: prune_workers
-- changes: workers
DELETE FROM ewe.workers AS w
WHERE w.alive = 0 AND coalesce(w.died_at, w.started_at) < :before
  AND NOT EXISTS (SELECT FROM ewe.sagas AS s WHERE s.ended_at IS NULL AND s.owner <> '' AND s.owner = w.id)
  AND NOT EXISTS (SELECT FROM ewe.sagas AS s WHERE s.ended_at IS NULL AND s.owner <> '' AND s.owner = 'given:' || w.id)
  AND NOT EXISTS (SELECT FROM ewe.checkpoints AS c WHERE c.owner = w.id)
  AND NOT EXISTS (SELECT FROM ewe.slots AS l WHERE l.worker = w.id AND l.done = 0);
