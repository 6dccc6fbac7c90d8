-- What users' own transactions have left for the store.

-- name: staged_page
SELECT * FROM staged WHERE refused IS NULL AND id > :after ORDER BY id LIMIT :limit;

-- name: staged_refused
SELECT * FROM staged WHERE refused IS NOT NULL AND id > :after ORDER BY id LIMIT :limit;

-- name: backlog_counts
SELECT (SELECT count(*) FROM (SELECT 1 FROM dead_letters LIMIT :limit) AS c) AS dead_letters,
       (SELECT count(*) FROM (SELECT 1 FROM parked_keys LIMIT :limit) AS c) AS parked_keys,
       (SELECT count(*) FROM (SELECT 1 FROM parked_events LIMIT :limit) AS c) AS parked_events,
       (SELECT count(*) FROM (SELECT 1 FROM staged WHERE refused IS NULL LIMIT :limit) AS c) AS staged,
       (SELECT count(*) FROM (SELECT 1 FROM staged WHERE refused IS NOT NULL LIMIT :limit) AS c) AS refused;
