-- What each worker has room for and can run, so that others can give it of their sagas; and when it died. Workers of an
-- older release go on meanwhile: theirs stay NULL.

ALTER TABLE ewe.workers
    ADD COLUMN max_running bigint,
    ADD COLUMN runs text COLLATE "C",
    ADD COLUMN died_at bigint;

CREATE OR REPLACE FUNCTION ewe.put_workers(images jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ewe.workers (id, incarnation, alive, beat, host, pid, started_at, lease, max_running, runs, died_at)
    SELECT v ->> 0, (v ->> 1)::bigint, (v ->> 2)::bigint, (v ->> 3)::bigint, v ->> 4, (v ->> 5)::bigint,
           (v ->> 6)::bigint, (v ->> 7)::bigint, (v ->> 8)::bigint, v ->> 9, (v ->> 10)::bigint
    FROM jsonb_array_elements(images) AS s(v)
    ON CONFLICT (id) DO UPDATE SET
        incarnation = excluded.incarnation, alive = excluded.alive, beat = excluded.beat, host = excluded.host,
        pid = excluded.pid, started_at = excluded.started_at, lease = excluded.lease,
        max_running = excluded.max_running, runs = excluded.runs, died_at = excluded.died_at;
END $$;
