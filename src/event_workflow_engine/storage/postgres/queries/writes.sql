-- What changes the store, beside the claims.

-- name: commit_batch
SELECT last_position, row_version, stale FROM ewe.commit_batch(
    :streams, :versions, :sagas, :saga_rows, :workers, :worker_rows, :seen, :assumed_position, :exact,
    :reach, :positions, :record_streams, :record_versions, :counts, :parts, :ids, :types, :schemas, :payloads,
    :metadatas, :times, :unit_ids, :unit_times, :images, :dropped, :channel, :sender);

-- name: announce
SELECT ewe.announce(:channel, :sender);

-- name: tell
SELECT pg_notify(:channel, :sender);

-- name: stage
SELECT ewe.stage_here(:cluster, :database, :id, :body, :staged_at, :channel) AS here;

-- name: whereabouts
SELECT cluster, database FROM ewe.whereabouts();

-- name: lock_store
SET LOCAL idle_in_transaction_session_timeout = '15s';

SELECT ewe.lock_store();

-- name: begin_locked
-- Two statements in one message. A client that hangs inside is cut off by the server, for all others wait for it.
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

SET LOCAL idle_in_transaction_session_timeout = '15s';

SELECT ewe.lock_store();
