-- What a saga that nobody runs waits for, and when a worker was heard of last: for people.

ALTER TABLE ewe.sagas ADD COLUMN waits_for text COLLATE "C";

ALTER TABLE ewe.workers ADD COLUMN beat_at bigint;

CREATE INDEX staged_refused ON ewe.staged (id) WHERE refused IS NOT NULL;

CREATE OR REPLACE FUNCTION ewe.put_sagas(images jsonb) RETURNS void LANGUAGE plpgsql AS $b$BEGIN
    INSERT INTO ewe.sagas (id, saga, saga_version, state, owner, fence, wake_at, cursor, started_at, ended_at, waits_for)
    SELECT v ->> 0, v ->> 1, (v ->> 2)::bigint, v ->> 3, v ->> 4, (v ->> 5)::bigint, (v ->> 6)::bigint,
           (v ->> 7)::bigint, (v ->> 8)::bigint, (v ->> 9)::bigint, v ->> 10
    FROM jsonb_array_elements(images) AS s(v)
    ON CONFLICT (id) DO UPDATE SET
        saga = excluded.saga, saga_version = excluded.saga_version, state = excluded.state, owner = excluded.owner,
        fence = excluded.fence, wake_at = excluded.wake_at, cursor = excluded.cursor,
        started_at = excluded.started_at, ended_at = excluded.ended_at, waits_for = excluded.waits_for;
END $b$;

CREATE OR REPLACE FUNCTION ewe.put_workers(images jsonb) RETURNS void LANGUAGE plpgsql AS $b$BEGIN
    INSERT INTO ewe.workers (
        id, incarnation, alive, beat, host, pid, started_at, lease, max_running, runs, died_at, beat_at)
    SELECT v ->> 0, (v ->> 1)::bigint, (v ->> 2)::bigint, (v ->> 3)::bigint, v ->> 4, (v ->> 5)::bigint,
           (v ->> 6)::bigint, (v ->> 7)::bigint, (v ->> 8)::bigint, v ->> 9, (v ->> 10)::bigint, (v ->> 11)::bigint
    FROM jsonb_array_elements(images) AS s(v)
    ON CONFLICT (id) DO UPDATE SET
        incarnation = excluded.incarnation, alive = excluded.alive, beat = excluded.beat, host = excluded.host,
        pid = excluded.pid, started_at = excluded.started_at, lease = excluded.lease,
        max_running = excluded.max_running, runs = excluded.runs, died_at = excluded.died_at,
        beat_at = excluded.beat_at;
END $b$;

-- Which database this is: a standby, and the server that takes over, say the same. The cluster is NULL for roles that may
-- not ask for it.
CREATE FUNCTION ewe.whereabouts(OUT cluster text, OUT database text) LANGUAGE plpgsql AS $$
BEGIN
    database := (SELECT oid || ' ' || datname FROM pg_database WHERE datname = current_database());
    IF has_function_privilege('pg_control_system()', 'EXECUTE') THEN
        cluster := (SELECT system_identifier FROM pg_control_system());
    END IF;
END $$;

-- As ewe.stage, where this is the store's own database; else nothing is done. Whether it was.
CREATE FUNCTION ewe.stage_here(
    cluster text, database text, id text, body text, staged_at bigint, channel text
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    here record;
BEGIN
    here := ewe.whereabouts();
    IF database <> here.database OR cluster <> here.cluster THEN
        RETURN false;
    END IF;
    PERFORM ewe.stage(id, body, staged_at, channel);
    RETURN true;
END $$;
