-- What changes the store, beside the claims.

-- name: commit_batch
-- Lists of numbers come as text: the driver would look at each number four times, whether it is a list itself.
SELECT last_position, row_version, stale FROM ewe.commit_batch(
    :streams, CAST(CAST(:versions AS text) AS bigint[]),
    :sagas, CAST(CAST(:saga_rows AS text) AS bigint[]), :workers, CAST(CAST(:worker_rows AS text) AS bigint[]),
    :seen, :assumed_position, :exact, :reach,
    CAST(CAST(:positions AS text) AS bigint[]), :record_streams, CAST(CAST(:record_versions AS text) AS bigint[]),
    CAST(CAST(:counts AS text) AS bigint[]), CAST(CAST(:parts AS text) AS bigint[]), :ids, :types,
    CAST(CAST(:schemas AS text) AS bigint[]), :payloads, :metadatas, CAST(CAST(:times AS text) AS bigint[]),
    :unit_ids, CAST(CAST(:unit_times AS text) AS bigint[]), :images, :dropped, :channel, :sender);

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
