-- Reads over schedules and their slots.

-- name: due_schedules
SELECT * FROM schedules WHERE paused = 0 AND next_run <= :now ORDER BY next_run, id LIMIT :limit;

-- name: next_schedule
SELECT next_run FROM schedules WHERE paused = 0 AND next_run IS NOT NULL ORDER BY next_run LIMIT 1;

-- name: schedules_all
SELECT * FROM schedules ORDER BY id;

-- name: open_slots
SELECT * FROM slots WHERE done = 0 ORDER BY schedule, slot;
