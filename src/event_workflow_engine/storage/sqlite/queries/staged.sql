-- What users' own transactions have left for the store.

-- name: staged_page
SELECT * FROM staged WHERE refused IS NULL AND id > :after ORDER BY id LIMIT :limit;
