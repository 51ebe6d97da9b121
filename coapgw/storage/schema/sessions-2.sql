-- MQTT 5: sessions have an expiry in seconds (0xFFFFFFFF: never); filters have options and an identifier.
ALTER TABLE session RENAME COLUMN persistent TO expiry;
UPDATE session SET expiry = 4294967295 WHERE expiry;
ALTER TABLE session ADD COLUMN expires REAL; -- seconds since the epoch; null while the client is connected
ALTER TABLE subscription RENAME COLUMN qos TO options;
ALTER TABLE subscription ADD COLUMN identifier INTEGER NOT NULL DEFAULT 0;
-- What sessions are owed.  A message is there once, a claim for each session.
CREATE TABLE message (
    number INTEGER PRIMARY KEY,
    topic BLOB NOT NULL,
    payload BLOB NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    properties BLOB NOT NULL,
    expires REAL,
    origin TEXT
);
CREATE TABLE claim (
    serial INTEGER PRIMARY KEY, -- in the order of delivery
    client_id TEXT NOT NULL,
    number INTEGER, -- null: QoS 2, received, PUBCOMP to come
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    identifiers TEXT NOT NULL, -- numbers with spaces between
    packet_id INTEGER -- QoS 2, sent
);
CREATE INDEX claim_client ON claim (client_id);
CREATE TABLE received ( -- QoS 2 messages of clients that they have not released
    client_id TEXT NOT NULL,
    packet_id INTEGER NOT NULL,
    PRIMARY KEY (client_id, packet_id)
) WITHOUT ROWID;
CREATE TABLE retained (
    topic BLOB PRIMARY KEY,
    payload BLOB NOT NULL,
    qos INTEGER NOT NULL,
    properties BLOB NOT NULL,
    expires REAL
) WITHOUT ROWID;
PRAGMA user_version = 2;
