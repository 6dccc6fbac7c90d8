-- The log, the ids of units without events, and the declared tables of storage/tables.py.

-- One row is one record: one event, or several packed (count). Position and version are those of its last event.
-- The writer assigns positions (see positions_floor). part is 0 for the first record of its unit, else 1 + the place of
-- the append it belongs to, so that a unit's extent can be read back from its first record.
--
-- A stream is a chain: its row in streams tells its last record, each record the one before it (before; 0: none). An
-- index over all records by stream would be written at as many places as a batch has streams; the chain is written
-- where the log grows. Every record that crosses a multiple of 64 versions is an anchor, from which a reader enters a
-- long stream in its middle.
CREATE TABLE events (
    position    INTEGER PRIMARY KEY,
    stream      INTEGER NOT NULL,
    version     INTEGER NOT NULL,
    count       INTEGER NOT NULL CHECK (count > 0),
    part        INTEGER NOT NULL,
    before      INTEGER NOT NULL,
    id          TEXT    NOT NULL CHECK (id <> ''),
    type        TEXT    NOT NULL CHECK (type <> ''),
    schema      INTEGER NOT NULL,
    data        BLOB    NOT NULL,
    metadata    BLOB    NOT NULL,
    recorded_at INTEGER NOT NULL
);
CREATE UNIQUE INDEX events_by_id ON events (id);
CREATE UNIQUE INDEX events_anchors ON events (stream, version) WHERE version / 64 <> (version - count) / 64;

CREATE TABLE streams (
    number   INTEGER PRIMARY KEY,
    name     TEXT    NOT NULL UNIQUE,
    version  INTEGER NOT NULL,
    position INTEGER NOT NULL
);

-- Positions are never reused: the next one is behind the last record and behind every record that was ever deleted.
-- So the counter needs to be written only when records are deleted, which no hot path does.
CREATE TABLE positions_floor (
    only  INTEGER PRIMARY KEY CHECK (only = 1),
    value INTEGER NOT NULL
);
INSERT INTO positions_floor VALUES (1, 0);
CREATE TRIGGER events_deleted AFTER DELETE ON events BEGIN
    UPDATE positions_floor SET value = max(value, OLD.position);
END;

-- Ids of units without records, pruned from the oldest. Units with records have the id of their first.
CREATE TABLE units (
    id TEXT    NOT NULL UNIQUE CHECK (id <> ''),
    at INTEGER NOT NULL
);

-- Rows of tables that grow for ever stand in the order of their making, and so do those of their indexes that have few
-- distinct values: a batch writes them where it wrote before. Only the index over ids is written all over.
CREATE TABLE sagas (
    id           TEXT NOT NULL PRIMARY KEY,
    saga         TEXT,
    saga_version INTEGER,
    state        TEXT,
    owner        TEXT,
    fence        INTEGER,
    wake_at      INTEGER,
    cursor       INTEGER,
    started_at   INTEGER,
    ended_at     INTEGER
);
-- A running saga has an owner and no wake_at, unless somebody spoke to it; a sleeping one has the reverse.
CREATE INDEX sagas_by_wake ON sagas (wake_at) WHERE ended_at IS NULL AND owner = '' AND wake_at IS NOT NULL;
CREATE INDEX sagas_woken ON sagas (owner) WHERE ended_at IS NULL AND owner <> '' AND wake_at IS NOT NULL;
CREATE INDEX sagas_by_owner ON sagas (owner) WHERE ended_at IS NULL AND owner <> '';
CREATE INDEX sagas_by_saga ON sagas (saga);
CREATE INDEX sagas_by_state ON sagas (state);

CREATE TABLE saga_ids (
    id         TEXT NOT NULL PRIMARY KEY,
    saga       TEXT,
    input_hash TEXT,
    expires_at INTEGER
);

CREATE TABLE workers (
    id          TEXT NOT NULL PRIMARY KEY,
    incarnation INTEGER,
    alive       INTEGER,
    beat        INTEGER,
    host        TEXT,
    pid         INTEGER,
    started_at  INTEGER,
    lease       INTEGER
) WITHOUT ROWID;

CREATE TABLE checkpoints (
    name          TEXT NOT NULL PRIMARY KEY,
    position      INTEGER,
    events        INTEGER,
    last_event_id TEXT,
    saga_id       TEXT,
    recorded_at   INTEGER,
    owner         TEXT
) WITHOUT ROWID;

CREATE TABLE projections (
    name        TEXT NOT NULL PRIMARY KEY,
    generation  INTEGER,
    version     INTEGER,
    mode        TEXT,
    shadow      INTEGER,
    inline_from INTEGER
) WITHOUT ROWID;

-- Rows of this and the other tables with bodies may be large, so they are kept apart from their keys.
CREATE TABLE documents (
    projection TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    key        TEXT    NOT NULL,
    body       TEXT,
    PRIMARY KEY (projection, generation, key)
);

CREATE TABLE parked_keys (
    projection TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    key        TEXT    NOT NULL,
    error      TEXT,
    parked_at  INTEGER,
    PRIMARY KEY (projection, generation, key)
);

CREATE TABLE parked_events (
    projection TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    key        TEXT    NOT NULL,
    position   INTEGER NOT NULL,
    PRIMARY KEY (projection, generation, key, position)
) WITHOUT ROWID;

CREATE TABLE snapshots (
    stream         TEXT NOT NULL,
    type           TEXT NOT NULL,
    version        INTEGER,
    schema_version INTEGER,
    fingerprint    TEXT,
    state          BLOB,
    taken_at       INTEGER,
    PRIMARY KEY (stream, type)
);

CREATE TABLE schedules (
    id         TEXT NOT NULL PRIMARY KEY,
    kind       TEXT,
    spec       TEXT,
    task       BLOB,
    next_run   INTEGER,
    paused     INTEGER,
    created_at INTEGER
);
CREATE INDEX schedules_by_next_run ON schedules (next_run) WHERE paused = 0 AND next_run IS NOT NULL;

CREATE TABLE slots (
    schedule TEXT    NOT NULL,
    slot     INTEGER NOT NULL,
    worker   TEXT,
    fired_at INTEGER,
    done     INTEGER,
    PRIMARY KEY (schedule, slot)
) WITHOUT ROWID;
CREATE INDEX slots_open ON slots (done) WHERE done = 0;

CREATE TABLE dead_letters (
    id           TEXT NOT NULL PRIMARY KEY,
    subscription TEXT,
    event        BLOB,
    error        TEXT,
    attempts     INTEGER,
    parked_at    INTEGER
);
CREATE INDEX dead_letters_by_time ON dead_letters (parked_at, id);

CREATE TABLE queues (
    name   TEXT NOT NULL PRIMARY KEY,
    rev    INTEGER,
    paused INTEGER,
    config TEXT,
    recent TEXT
);

CREATE TABLE queued (
    saga        TEXT NOT NULL PRIMARY KEY,
    queue       TEXT,
    partition   TEXT,
    priority    INTEGER,
    enqueued_at INTEGER,
    not_before  INTEGER,
    state       INTEGER
);
CREATE INDEX queued_early ON queued (queue, not_before) WHERE state = 0;
CREATE INDEX queued_waiting ON queued (queue, partition, priority DESC, enqueued_at, saga) WHERE state = 1;
CREATE INDEX queued_admitted ON queued (queue, partition) WHERE state >= 2;

CREATE TABLE queue_keys (
    queue TEXT NOT NULL,
    key   TEXT NOT NULL,
    saga  TEXT,
    PRIMARY KEY (queue, key)
) WITHOUT ROWID;

CREATE TABLE staged (
    id        TEXT NOT NULL PRIMARY KEY,
    body      TEXT,
    staged_at INTEGER,
    refused   TEXT
);
CREATE INDEX staged_open ON staged (id) WHERE refused IS NULL;

CREATE TABLE commands (
    id           TEXT NOT NULL PRIMARY KEY,
    command_hash TEXT,
    stream       TEXT,
    version      INTEGER,
    positions    TEXT
) WITHOUT ROWID;
