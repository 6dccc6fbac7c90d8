-- What each worker has room for and can run, so that others can give it of their sagas; and when it died.

ALTER TABLE workers ADD COLUMN max_running INTEGER;
ALTER TABLE workers ADD COLUMN runs TEXT;
ALTER TABLE workers ADD COLUMN died_at INTEGER;
