-- A registry as migration 0001 left it: what sqlite3's .dump says of it.  Never change it; add one for the next.
BEGIN TRANSACTION;
CREATE TABLE devices (
	iccid VARCHAR(20) NOT NULL, 
	imsi VARCHAR(15), 
	ip VARCHAR(45), 
	name VARCHAR(64), 
	status VARCHAR(8) NOT NULL, 
	created_at BIGINT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	version BIGINT NOT NULL, 
	PRIMARY KEY (iccid), 
	CONSTRAINT devices_ip_once UNIQUE (ip), 
	CONSTRAINT devices_status_known CHECK (status IN ('ACTIVE', 'INACTIVE'))
);
INSERT INTO "devices" VALUES('8988280666000000001','901405100000001','10.0.0.1','boiler','ACTIVE',1700000000000,1700000003000,5);
INSERT INTO "devices" VALUES('8988280666000000002',NULL,'2001:db8::2','Zähler','INACTIVE',1700000001000,1700000001000,2);
CREATE TABLE devices_removed (
	iccid VARCHAR(20) NOT NULL, 
	version BIGINT NOT NULL, 
	PRIMARY KEY (iccid)
);
INSERT INTO "devices_removed" VALUES('8988280666000000003',4);
CREATE TABLE registry_revision (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT registry_revision_pkc PRIMARY KEY (version_num)
);
INSERT INTO "registry_revision" VALUES('0001');
CREATE TABLE registry_version (
	n BIGINT NOT NULL
);
INSERT INTO "registry_version" VALUES(5);
CREATE INDEX devices_by_version ON devices (version);
CREATE INDEX devices_removed_by_version ON devices_removed (version);
COMMIT;
