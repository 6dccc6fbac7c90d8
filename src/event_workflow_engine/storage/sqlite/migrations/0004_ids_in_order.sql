-- Most ids come in the order of the log: UUIDs of version 7 grow with time. An id above all those in order before it is
-- new, and where the log has it can be found by a search in the log. So only few of them are in an index, the landmarks
-- (id_order 1): each that stands 64 positions or more behind the one before it. The others in order (0) stand less
-- than 64 positions behind the landmark that is next below them. Ids that came out of order, or that are no such
-- UUIDs, are loose (2) and all in an index, as are those that were stored before this.
ALTER TABLE events ADD COLUMN id_order INTEGER NOT NULL DEFAULT 2;

DROP INDEX events_by_id;
CREATE UNIQUE INDEX events_loose ON events (id) WHERE id_order = 2;
CREATE UNIQUE INDEX events_landmarks ON events (id) WHERE id_order = 1;

-- Without their landmark, those behind it would not be found.
CREATE TRIGGER landmark_deleted AFTER DELETE ON events WHEN OLD.id_order = 1 BEGIN
    UPDATE events SET id_order = 2
    WHERE position > OLD.position AND position < OLD.position + 64 AND id_order = 0;
END;
