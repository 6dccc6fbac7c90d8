-- Reads over schedules and their slots.

-- name: due_schedules
SELECT * FROM ewe.schedules WHERE paused = 0 AND next_run <= :now ORDER BY next_run, id LIMIT :limit;

-- name: next_schedule
SELECT next_run FROM ewe.schedules WHERE paused = 0 AND next_run IS NOT NULL ORDER BY next_run LIMIT 1;

-- name: schedules_all
SELECT * FROM ewe.schedules ORDER BY id;

-- name: open_slots
SELECT * FROM ewe.slots WHERE done = 0 ORDER BY schedule, slot;
