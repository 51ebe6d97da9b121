-- Messages on their way to MQTT. A place grows by one a message and never repeats.
CREATE TABLE message (
    place INTEGER PRIMARY KEY,
    received INTEGER NOT NULL,
    iccid TEXT NOT NULL,
    message_id TEXT NOT NULL,
    topic BLOB NOT NULL,
    payload BLOB NOT NULL
);
-- Devices whose first message was stored: an ICCID, and when that life of it was registered.
CREATE TABLE introduced (
    iccid TEXT NOT NULL,
    born INTEGER NOT NULL,
    PRIMARY KEY (iccid, born)
) WITHOUT ROWID;
-- One row: what the table of messages holds, and the highest place that may have been given.
CREATE TABLE totals (
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    reserved INTEGER NOT NULL
);
INSERT INTO totals VALUES (0, 0, 0);
PRAGMA user_version = 1;
