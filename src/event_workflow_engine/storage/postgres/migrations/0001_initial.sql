-- The log, the ids of units without events, the declared tables of storage/tables.py, and the functions that write them.
--
-- "ewe." stands for the store's schema, whatever its name. Text is compared byte by byte (COLLATE "C"), so that order
-- does not depend on the server's locale.

-- One row is one record: one event, or several packed (count). Position and version are those of its last event.
-- part is 0 for the first record of its unit, else 1 + the place of the append it belongs to, so that a unit's extent
-- can be read back from its first record.
CREATE TABLE ewe.events (
    position    bigint  NOT NULL PRIMARY KEY,
    stream      text    COLLATE "C" NOT NULL CHECK (stream <> ''),
    version     bigint  NOT NULL,
    count       integer NOT NULL CHECK (count > 0),
    part        integer NOT NULL,
    id          text    COLLATE "C" NOT NULL CHECK (id <> ''),
    type        text    COLLATE "C" NOT NULL CHECK (type <> ''),
    schema      bigint  NOT NULL,
    data        bytea   NOT NULL,
    metadata    bytea   NOT NULL,
    recorded_at bigint  NOT NULL
);
CREATE UNIQUE INDEX events_by_id ON ewe.events (id);
CREATE UNIQUE INDEX events_by_stream ON ewe.events (stream, version);

-- The position of the last event that was ever written. It is read and set under the store's lock only, so positions
-- strictly increase in the order of commits; a transaction that fails behind it leaves a gap, never a second use.
CREATE SEQUENCE ewe.positions MINVALUE 0 START 0;
SELECT setval('ewe.positions', 0);

-- Counts the transactions that changed something. Who cannot be notified looks here.
CREATE SEQUENCE ewe.commits;

-- Ids of units without records, pruned from the oldest. Units with records have the id of their first.
CREATE TABLE ewe.units (
    id text COLLATE "C" NOT NULL PRIMARY KEY CHECK (id <> ''),
    at bigint NOT NULL
);
CREATE INDEX units_by_age ON ewe.units (at);

CREATE TABLE ewe.sagas (
    id           text COLLATE "C" NOT NULL PRIMARY KEY,
    saga         text COLLATE "C",
    saga_version bigint,
    state        text COLLATE "C",
    owner        text COLLATE "C",
    fence        bigint,
    wake_at      bigint,
    cursor       bigint,
    started_at   bigint,
    ended_at     bigint
) WITH (fillfactor = 80);
-- A running saga has an owner and no wake_at, unless somebody spoke to it; a sleeping one has the reverse.
CREATE INDEX sagas_by_wake ON ewe.sagas (wake_at, id) WHERE ended_at IS NULL AND owner = '' AND wake_at IS NOT NULL;
CREATE INDEX sagas_woken ON ewe.sagas (owner) WHERE ended_at IS NULL AND owner <> '' AND wake_at IS NOT NULL;
CREATE INDEX sagas_by_owner ON ewe.sagas (owner) WHERE ended_at IS NULL AND owner <> '';
CREATE INDEX sagas_by_saga ON ewe.sagas (saga, id);
CREATE INDEX sagas_by_state ON ewe.sagas (state, id);

CREATE TABLE ewe.saga_ids (
    id         text COLLATE "C" NOT NULL PRIMARY KEY,
    saga       text COLLATE "C",
    input_hash text COLLATE "C",
    expires_at bigint
);

CREATE TABLE ewe.workers (
    id          text COLLATE "C" NOT NULL PRIMARY KEY,
    incarnation bigint,
    alive       bigint,
    beat        bigint,
    host        text COLLATE "C",
    pid         bigint,
    started_at  bigint,
    lease       bigint
) WITH (fillfactor = 50);
CREATE INDEX workers_alive ON ewe.workers (id) WHERE alive = 1;

CREATE TABLE ewe.checkpoints (
    name          text COLLATE "C" NOT NULL PRIMARY KEY,
    position      bigint,
    events        bigint,
    last_event_id text COLLATE "C",
    saga_id       text COLLATE "C",
    recorded_at   bigint,
    owner         text COLLATE "C"
) WITH (fillfactor = 50);

CREATE TABLE ewe.projections (
    name        text COLLATE "C" NOT NULL PRIMARY KEY,
    generation  bigint,
    version     bigint,
    mode        text COLLATE "C",
    shadow      bigint,
    inline_from bigint
);

CREATE TABLE ewe.documents (
    projection text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    key        text COLLATE "C" NOT NULL,
    body       text COLLATE "C",
    PRIMARY KEY (projection, generation, key)
) WITH (fillfactor = 80);

CREATE TABLE ewe.parked_keys (
    projection text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    key        text COLLATE "C" NOT NULL,
    error      text COLLATE "C",
    parked_at  bigint,
    PRIMARY KEY (projection, generation, key)
);

CREATE TABLE ewe.parked_events (
    projection text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    key        text COLLATE "C" NOT NULL,
    position   bigint NOT NULL,
    PRIMARY KEY (projection, generation, key, position)
);

CREATE TABLE ewe.snapshots (
    stream         text COLLATE "C" NOT NULL,
    type           text COLLATE "C" NOT NULL,
    version        bigint,
    schema_version bigint,
    fingerprint    text COLLATE "C",
    state          bytea,
    taken_at       bigint,
    PRIMARY KEY (stream, type)
);

CREATE TABLE ewe.schedules (
    id         text COLLATE "C" NOT NULL PRIMARY KEY,
    kind       text COLLATE "C",
    spec       text COLLATE "C",
    task       bytea,
    next_run   bigint,
    paused     bigint,
    created_at bigint
);
CREATE INDEX schedules_by_next_run ON ewe.schedules (next_run) WHERE paused = 0 AND next_run IS NOT NULL;

CREATE TABLE ewe.slots (
    schedule text COLLATE "C" NOT NULL,
    slot     bigint NOT NULL,
    worker   text COLLATE "C",
    fired_at bigint,
    done     bigint,
    PRIMARY KEY (schedule, slot)
);
CREATE INDEX slots_open ON ewe.slots (schedule, slot) WHERE done = 0;

CREATE TABLE ewe.dead_letters (
    id           text COLLATE "C" NOT NULL PRIMARY KEY,
    subscription text COLLATE "C",
    event        bytea,
    error        text COLLATE "C",
    attempts     bigint,
    parked_at    bigint
);
CREATE INDEX dead_letters_by_time ON ewe.dead_letters (parked_at, id);

CREATE TABLE ewe.queues (
    name   text COLLATE "C" NOT NULL PRIMARY KEY,
    rev    bigint,
    paused bigint,
    config text COLLATE "C",
    recent text COLLATE "C"
) WITH (fillfactor = 50);

CREATE TABLE ewe.queued (
    saga        text COLLATE "C" NOT NULL PRIMARY KEY,
    queue       text COLLATE "C",
    partition   text COLLATE "C",
    priority    bigint,
    enqueued_at bigint,
    not_before  bigint,
    state       bigint
) WITH (fillfactor = 80);
CREATE INDEX queued_early ON ewe.queued (queue, not_before) WHERE state = 0;
CREATE INDEX queued_waiting ON ewe.queued (queue, partition, priority DESC, enqueued_at, saga) WHERE state = 1;
CREATE INDEX queued_admitted ON ewe.queued (queue, partition) WHERE state >= 2;

CREATE TABLE ewe.queue_keys (
    queue text COLLATE "C" NOT NULL,
    key   text COLLATE "C" NOT NULL,
    saga  text COLLATE "C",
    PRIMARY KEY (queue, key)
);

CREATE TABLE ewe.staged (
    id        text COLLATE "C" NOT NULL PRIMARY KEY,
    body      text COLLATE "C",
    staged_at bigint,
    refused   text COLLATE "C"
) WITH (fillfactor = 80);
CREATE INDEX staged_open ON ewe.staged (id) WHERE refused IS NULL;

CREATE TABLE ewe.commands (
    id           text COLLATE "C" NOT NULL PRIMARY KEY,
    command_hash text COLLATE "C",
    stream       text COLLATE "C",
    version      bigint,
    positions    text COLLATE "C"
);

-- All that changes the store holds this lock until its transaction has committed. An older snapshot than the lock would
-- not see what the last holder wrote, hence READ COMMITTED: there each statement behind the lock has its own.
CREATE FUNCTION ewe.lock_store() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the store is written at isolation level READ COMMITTED, not %',
            upper(current_setting('transaction_isolation')) USING ERRCODE = 'feature_not_supported';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('event-workflow-engine ewe.', 0));
END $$;

-- Tells the other processes of what commits with this transaction.
CREATE FUNCTION ewe.announce(channel text, sender text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('ewe.commits');
    PERFORM pg_notify(channel, sender);
END $$;

-- Leaves a unit for the store in a transaction of the user's: no lock, no position. What commits is moved into the log.
CREATE FUNCTION ewe.stage(id text, body text, staged_at bigint, channel text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ewe.staged VALUES (id, body, staged_at, NULL);
    PERFORM ewe.announce(channel, '');
END $$;

-- SQL of users runs with ewe.user_sql on, and may change their own tables only.
CREATE FUNCTION ewe.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is the engine''s: SQL of users may change their own tables only', TG_TABLE_NAME
        USING ERRCODE = 'wrong_object_type';
END $$;
DO $make$
DECLARE
    own regclass;
BEGIN
    FOR own IN
        SELECT c.oid FROM pg_class AS c
        WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'ewe.events'::regclass)
    LOOP
        EXECUTE format(
            'CREATE TRIGGER refuse_users BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s FOR EACH STATEMENT '
            'WHEN (current_setting(''ewe.user_sql'', true) = ''on'') EXECUTE FUNCTION ewe.refuse_change()', own);
    END LOOP;
END $make$;

-- For each declared table three functions over a JSON array: which of some rows are not as they were seen ([key…, xmin],
-- xmin null where there was no row), putting whole rows ([value…]), and dropping rows ([key…]).
-- For all of them together three that dispatch by table name, over an object of such arrays.
DO $make$
DECLARE
    name    text;
    column_ record;
    keys    text[];
    columns text[];
    sets    text[];
    values_ text[];
    matches text[];
    stale   text := '';
    put     text := '';
    dropped text := '';
BEGIN
    FOREACH name IN ARRAY ARRAY['sagas', 'saga_ids', 'workers', 'checkpoints', 'projections', 'documents', 'parked_keys',
                                'parked_events', 'snapshots', 'schedules', 'slots', 'dead_letters', 'commands',
                                'queues', 'queued', 'queue_keys', 'staged'] LOOP
        keys := '{}'; columns := '{}'; sets := '{}'; values_ := '{}'; matches := '{}';
        FOR column_ IN
            SELECT a.attname, format_type(a.atttypid, NULL) AS type, a.attnotnull AS of_key
            FROM pg_attribute AS a
            WHERE a.attrelid = ('ewe.' || name)::regclass AND a.attnum > 0 AND NOT a.attisdropped
            ORDER BY a.attnum
        LOOP
            columns := columns || format('%I', column_.attname);
            values_ := values_ || CASE column_.type
                WHEN 'text' THEN format('v ->> %s', cardinality(values_))
                WHEN 'bytea' THEN format('decode(v ->> %s, ''base64'')', cardinality(values_))
                ELSE format('(v ->> %s)::%s', cardinality(values_), column_.type)
            END;
            IF column_.of_key THEN
                matches := matches || format('t.%I = %s', column_.attname, values_[cardinality(values_)]);
                keys := keys || format('%I', column_.attname);
            ELSE
                sets := sets || format('%1$I = excluded.%1$I', column_.attname);
            END IF;
        END LOOP;
        EXECUTE format(
            $f$CREATE FUNCTION ewe.stale_%1$s(seen jsonb) RETURNS jsonb LANGUAGE plpgsql AS $b$BEGIN
                RETURN (SELECT jsonb_agg(v) FROM jsonb_array_elements(seen) AS s(v)
                        LEFT JOIN ewe.%1$s AS t ON %2$s WHERE t.xmin::text IS DISTINCT FROM v ->> %3$s);
            END $b$$f$, name, array_to_string(matches, ' AND '), cardinality(keys));
        EXECUTE format(
            $f$CREATE FUNCTION ewe.put_%1$s(images jsonb) RETURNS void LANGUAGE plpgsql AS $b$BEGIN
                INSERT INTO ewe.%1$s (%2$s) SELECT %3$s FROM jsonb_array_elements(images) AS s(v)
                ON CONFLICT (%4$s) DO %5$s;
            END $b$$f$, name, array_to_string(columns, ', '), array_to_string(values_, ', '),
            array_to_string(keys, ', '),
            CASE WHEN sets = '{}' THEN 'NOTHING' ELSE 'UPDATE SET ' || array_to_string(sets, ', ') END);
        EXECUTE format(
            $f$CREATE FUNCTION ewe.drop_%1$s(keys jsonb) RETURNS void LANGUAGE plpgsql AS $b$BEGIN
                DELETE FROM ewe.%1$s AS t USING jsonb_array_elements(keys) AS s(v) WHERE %2$s;
            END $b$$f$, name, array_to_string(matches, ' AND '));
        stale := stale || format(
            $f$IF seen ? %1$L THEN
                found := ewe.stale_%1$s(seen -> %1$L);
                IF found IS NOT NULL THEN
                    stale := coalesce(stale, '{}') || jsonb_build_object(%1$L, found);
                END IF;
            END IF;
            $f$, name);
        put := put || format('IF images ? %1$L THEN PERFORM ewe.put_%1$s(images -> %1$L); END IF; ', name);
        dropped := dropped || format('IF keys ? %1$L THEN PERFORM ewe.drop_%1$s(keys -> %1$L); END IF; ', name);
    END LOOP;
    EXECUTE format(
        $f$CREATE FUNCTION ewe.stale_rows(seen jsonb) RETURNS jsonb LANGUAGE plpgsql AS $b$
        DECLARE stale jsonb; found jsonb;
        BEGIN %s RETURN stale; END $b$$f$, stale);
    EXECUTE format(
        'CREATE FUNCTION ewe.put_rows(images jsonb) RETURNS void LANGUAGE plpgsql AS $b$BEGIN %s END $b$', put);
    EXECUTE format(
        'CREATE FUNCTION ewe.drop_rows(keys jsonb) RETURNS void LANGUAGE plpgsql AS $b$BEGIN %s END $b$', dropped);
END $make$;

-- Writes a batch that its sender has judged, if all that it was judged by is still so; else changes nothing and tells
-- what is not. Any error undoes all of it.
CREATE FUNCTION ewe.commit_batch(
    -- what it was judged by: where streams end, rows of sagas and their xmin, rows of other tables, the last position
    IN streams text[], IN versions bigint[],
    IN sagas text[], IN saga_rows bigint[],
    IN seen jsonb,
    IN assumed_position bigint, IN exact boolean,    -- exact: something was judged by it
    -- records, with the positions that they have if the last one is the assumed one; and how far they reach
    IN reach bigint, IN positions bigint[], IN record_streams text[], IN record_versions bigint[], IN counts bigint[],
    IN parts bigint[], IN ids text[], IN types text[], IN schemas bigint[], IN payloads bytea[], IN metadatas bytea[],
    IN times bigint[],
    -- units without records, rows
    IN unit_ids text[], IN unit_times bigint[],
    IN images jsonb, IN dropped jsonb,
    -- whom to tell; channel NULL: nobody
    IN channel text, IN sender text,
    OUT last_position bigint,   -- before this batch
    OUT row_version bigint,     -- xmin of all rows that it wrote
    OUT stale jsonb             -- NULL: written
)
LANGUAGE plpgsql
-- Lists are looked up one by one in indexes, whatever the planner thinks of tables that it has no statistics of yet.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    differing jsonb;
BEGIN
    PERFORM ewe.lock_store();
    last_position := (SELECT p.last_value FROM ewe.positions AS p);
    IF exact AND assumed_position <> last_position THEN
        stale := jsonb_build_object('position', last_position);
    END IF;
    IF streams IS NOT NULL THEN
        differing := (
            SELECT jsonb_agg(asked.stream) FROM unnest(streams, versions) AS asked(stream, version)
            WHERE asked.version <> coalesce(
                (SELECT e.version FROM ewe.events AS e
                 WHERE e.stream = asked.stream ORDER BY e.version DESC LIMIT 1), 0));
        IF differing IS NOT NULL THEN
            stale := coalesce(stale, '{}') || jsonb_build_object('streams', differing);
        END IF;
    END IF;
    IF sagas IS NOT NULL THEN
        differing := (
            SELECT jsonb_agg(jsonb_build_array(asked.id, 0)) FROM unnest(sagas, saga_rows) AS asked(id, row_)
            LEFT JOIN ewe.sagas AS s ON s.id = asked.id WHERE s.xmin::text::bigint IS DISTINCT FROM asked.row_);
        IF differing IS NOT NULL THEN
            stale := coalesce(stale, '{}') || jsonb_build_object('rows', jsonb_build_object('sagas', differing));
        END IF;
    END IF;
    IF seen IS NOT NULL THEN
        differing := ewe.stale_rows(seen);
        IF differing IS NOT NULL THEN
            stale := coalesce(stale, '{}') || jsonb_build_object('rows', coalesce(stale -> 'rows', '{}') || differing);
        END IF;
    END IF;
    IF stale IS NOT NULL THEN
        RETURN;
    END IF;
    IF reach > 0 THEN
        INSERT INTO ewe.events (position, stream, version, count, part, id, type, schema, data, metadata, recorded_at)
        SELECT r.position - assumed_position + last_position, r.stream, r.version, r.count, r.part, r.id, r.type, r.schema, r.data,
               r.metadata, r.at
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
