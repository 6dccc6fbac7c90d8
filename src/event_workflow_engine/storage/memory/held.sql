-- What is asked of the tables of SQL projections, which even this store keeps in SQLite.

-- name: held_tables
SELECT name FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_' ORDER BY name;
