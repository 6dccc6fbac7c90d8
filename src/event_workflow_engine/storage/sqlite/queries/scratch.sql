-- Bare commits in a file of their own, for trying how fast they are.

-- name: scratch_table
CREATE TABLE IF NOT EXISTS bare_commits (position INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB NOT NULL);

-- name: scratch_commit
INSERT INTO bare_commits (data) VALUES (:data);
