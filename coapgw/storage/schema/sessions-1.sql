-- MQTT clients and what they subscribed to; filters may be any UTF-8, one row each.
CREATE TABLE session (
    client_id TEXT PRIMARY KEY,
    user_name TEXT,
    persistent INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE subscription (
    client_id TEXT NOT NULL REFERENCES session ON DELETE CASCADE,
    filter TEXT NOT NULL,
    qos INTEGER NOT NULL,
    PRIMARY KEY (client_id, filter)
) WITHOUT ROWID;
PRAGMA user_version = 1;
