-- Messages that the broker of a bridge refuses, until an operator has them sent again or dropped.
CREATE TABLE dead_letter (
    place INTEGER PRIMARY KEY,
    received INTEGER NOT NULL,
    iccid TEXT NOT NULL,
    message_id TEXT NOT NULL,
    topic BLOB NOT NULL,
    payload BLOB NOT NULL,
    reason TEXT NOT NULL,
    set_aside INTEGER NOT NULL
);
-- What the operator wants; written by the command line tool, done by the gateway.
CREATE TABLE dead_letter_request (
    place INTEGER PRIMARY KEY,
    action TEXT NOT NULL CHECK (action IN ('requeue', 'drop'))
);
ALTER TABLE totals ADD COLUMN dead_messages INTEGER NOT NULL DEFAULT 0;
ALTER TABLE totals ADD COLUMN dead_bytes INTEGER NOT NULL DEFAULT 0;
PRAGMA user_version = 2;
