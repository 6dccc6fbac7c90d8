-- Reads over dead letters.

-- name: dead_letters_page
SELECT * FROM ewe.dead_letters
WHERE :subscription::text IS NULL OR subscription = :subscription
ORDER BY coalesce(parked_at, 0), id
LIMIT :limit;
