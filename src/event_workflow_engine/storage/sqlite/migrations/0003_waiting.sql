-- What a saga that nobody runs waits for, and when a worker was heard of last: for people.

ALTER TABLE sagas ADD COLUMN waits_for TEXT;

ALTER TABLE workers ADD COLUMN beat_at INTEGER;

CREATE INDEX staged_refused ON staged (id) WHERE refused IS NOT NULL;
