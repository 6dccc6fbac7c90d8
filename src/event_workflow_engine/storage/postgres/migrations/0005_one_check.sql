-- Whether a batch was judged by what is still so is asked at once, for all that every batch has: where streams end, rows
-- of sagas, rows of workers. Most often it is, and only where it is not is it found out what is not.

CREATE FUNCTION ewe.what_is_stale(
    streams text[], versions bigint[], sagas text[], saga_rows bigint[], workers text[], worker_rows bigint[],
    seen jsonb
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    stale jsonb := '{}';
    rows_ jsonb := coalesce(ewe.stale_rows(seen), '{}');
    differing jsonb;
BEGIN
    differing := (
        SELECT jsonb_agg(asked.stream) FROM unnest(streams, versions) AS asked(stream, version)
        WHERE asked.version <> coalesce(
            (SELECT e.version FROM ewe.events AS e
             WHERE e.stream = asked.stream ORDER BY e.version DESC LIMIT 1), 0));
    IF differing IS NOT NULL THEN
        stale := stale || jsonb_build_object('streams', differing);
    END IF;
    differing := (
        SELECT jsonb_agg(jsonb_build_array(asked.id, 0)) FROM unnest(sagas, saga_rows) AS asked(id, row_)
        LEFT JOIN ewe.sagas AS s ON s.id = asked.id WHERE s.xmin::text::bigint IS DISTINCT FROM asked.row_);
    IF differing IS NOT NULL THEN
        rows_ := rows_ || jsonb_build_object('sagas', differing);
    END IF;
    differing := (
        SELECT jsonb_agg(jsonb_build_array(asked.id, 0)) FROM unnest(workers, worker_rows) AS asked(id, row_)
        LEFT JOIN ewe.workers AS w ON w.id = asked.id WHERE w.xmin::text::bigint IS DISTINCT FROM asked.row_);
    IF differing IS NOT NULL THEN
        rows_ := rows_ || jsonb_build_object('workers', differing);
    END IF;
    IF rows_ <> '{}' THEN
        stale := stale || jsonb_build_object('rows', rows_);
    END IF;
    RETURN stale;
END $$;

-- Writes a batch that its sender has judged, if all that it was judged by is still so; else changes nothing and tells
-- what is not. Any error undoes all of it.
CREATE FUNCTION ewe.commit_batch(
    -- what it was judged by: where streams end, rows of sagas and of workers and their xmin, rows of other tables, the
    -- last position
    IN streams text[], IN versions bigint[],
    IN sagas text[], IN saga_rows bigint[],
    IN workers text[], IN worker_rows bigint[],
    IN seen jsonb,
    IN assumed_position bigint, IN exact boolean,    -- exact: something was judged by it
    -- records, with the positions that they have if the last one is the assumed one; and how far they reach
    IN reach bigint, IN positions bigint[], IN record_streams text[], IN record_versions bigint[], IN counts bigint[],
    IN parts bigint[], IN ids text[], IN types text[], IN schemas bigint[], IN payloads bytea[], IN metadatas bytea[],
    IN times bigint[],
    -- units without records, rows
    IN unit_ids text[], IN unit_times bigint[],
    IN images jsonb, IN dropped jsonb,
    -- whom to tell; channel NULL: nobody, sender NULL: it is only counted
    IN channel text, IN sender text,
    OUT last_position bigint,   -- before this batch
    OUT row_version bigint,     -- xmin of all rows that it wrote
    OUT stale jsonb             -- NULL: written
)
LANGUAGE plpgsql
-- Lists are looked up one by one in indexes, whatever the planner thinks of tables that it has no statistics of yet.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off
AS $$
BEGIN
    PERFORM ewe.lock_store();
    last_position := (SELECT p.last_value FROM ewe.positions AS p);
    IF EXISTS (
        SELECT FROM unnest(streams, versions) AS asked(stream, version)
        WHERE asked.version <> coalesce(
            (SELECT e.version FROM ewe.events AS e
             WHERE e.stream = asked.stream ORDER BY e.version DESC LIMIT 1), 0)
    ) OR EXISTS (
        SELECT FROM unnest(sagas, saga_rows) AS asked(id, row_)
        LEFT JOIN ewe.sagas AS s ON s.id = asked.id WHERE s.xmin::text::bigint IS DISTINCT FROM asked.row_
    ) OR EXISTS (
        SELECT FROM unnest(workers, worker_rows) AS asked(id, row_)
        LEFT JOIN ewe.workers AS w ON w.id = asked.id WHERE w.xmin::text::bigint IS DISTINCT FROM asked.row_
    ) OR seen IS NOT NULL OR (exact AND assumed_position <> last_position) THEN
        stale := ewe.what_is_stale(streams, versions, sagas, saga_rows, workers, worker_rows, seen);
        IF exact AND assumed_position <> last_position THEN
            stale := stale || jsonb_build_object('position', last_position);
        END IF;
        IF stale <> '{}' THEN
            RETURN;
        END IF;
        stale := NULL;
    END IF;
    IF reach > 0 THEN
        INSERT INTO ewe.events (position, stream, version, count, part, id, type, schema, data, metadata, recorded_at)
        SELECT r.position - assumed_position + last_position, r.stream, r.version, r.count, r.part, r.id, r.type, r.schema,
               r.data, r.metadata, r.at
        FROM unnest(positions, record_streams, record_versions, counts, parts, ids, types, schemas, payloads, metadatas,
                    times)
            AS r(position, stream, version, count, part, id, type, schema, data, metadata, at);
        PERFORM setval('ewe.positions', last_position + reach);
    END IF;
    IF unit_ids IS NOT NULL THEN
        INSERT INTO ewe.units (id, at) SELECT * FROM unnest(unit_ids, unit_times);
    END IF;
    IF images IS NOT NULL THEN
        PERFORM ewe.put_rows(images);
    END IF;
    IF dropped IS NOT NULL THEN
        PERFORM ewe.drop_rows(dropped);
    END IF;
    IF reach > 0 OR unit_ids IS NOT NULL OR images IS NOT NULL OR dropped IS NOT NULL THEN
        IF channel IS NOT NULL THEN
            PERFORM ewe.announce(channel, sender);
        END IF;
        row_version := pg_current_xact_id()::text::bigint & 4294967295;
    END IF;
END $$;

-- Counts a commit, and tells the other processes of it: sender NULL: another one will.
CREATE OR REPLACE FUNCTION ewe.announce(channel text, sender text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('ewe.commits');
    IF sender IS NOT NULL THEN
        PERFORM pg_notify(channel, sender);
    END IF;
END $$;

-- Workers of an older release, which go on meanwhile, send rows of workers among the others.
CREATE OR REPLACE FUNCTION ewe.commit_batch(
    IN streams text[], IN versions bigint[], IN sagas text[], IN saga_rows bigint[], IN seen jsonb,
    IN assumed_position bigint, IN exact boolean,
    IN reach bigint, IN positions bigint[], IN record_streams text[], IN record_versions bigint[], IN counts bigint[],
    IN parts bigint[], IN ids text[], IN types text[], IN schemas bigint[], IN payloads bytea[], IN metadatas bytea[],
    IN times bigint[], IN unit_ids text[], IN unit_times bigint[], IN images jsonb, IN dropped jsonb,
    IN channel text, IN sender text,
    OUT last_position bigint, OUT row_version bigint, OUT stale jsonb
)
LANGUAGE plpgsql
AS $$
BEGIN
    SELECT written.* INTO last_position, row_version, stale
    FROM ewe.commit_batch(
        streams, versions, sagas, saga_rows, NULL, NULL, seen, assumed_position, exact, reach, positions, record_streams,
        record_versions, counts, parts, ids, types, schemas, payloads, metadatas, times, unit_ids, unit_times, images,
        dropped, channel, sender) AS written;
END $$;
