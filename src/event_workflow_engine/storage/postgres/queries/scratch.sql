-- A schema for trying things, which is dropped with all that is in it, and bare commits in it.

-- name: scratch_settings
SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit');

-- name: scratch_table
CREATE TABLE IF NOT EXISTS ewe.bare_commits (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea NOT NULL);

-- name: scratch_commit
INSERT INTO ewe.bare_commits (data) VALUES (:data);

-- name: scratch_sessions
-- Ended are those that still hold something of the schema, as a process does that was interrupted in a transaction.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND pid IN (
    SELECT held.pid FROM pg_locks AS held
    JOIN pg_class ON pg_class.oid = held.relation
    JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
    WHERE held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND pg_namespace.nspname = :schema
);
