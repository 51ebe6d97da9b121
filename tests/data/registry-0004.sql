-- A registry as migration 0004 left it, its keys sealed with the bytes 0 to 31.  Never change it; add one for the next.
BEGIN TRANSACTION;
CREATE TABLE device_keys (
	iccid VARCHAR(20) NOT NULL, 
	sealed BLOB NOT NULL, 
	format VARCHAR(6) NOT NULL, 
	by_user BOOLEAN NOT NULL, 
	serial BIGINT NOT NULL, 
	created_at BIGINT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	bootstrapped_at BIGINT, 
	PRIMARY KEY (iccid), 
	CONSTRAINT device_keys_format_known CHECK (format IN ('STRING', 'HEX')), 
	CONSTRAINT device_keys_device FOREIGN KEY(iccid) REFERENCES devices (iccid)
);
INSERT INTO "device_keys" VALUES('8988280666000000001',X'035654B757FEBBA2A9B230215ED1BB54B7712E2B00B6206D1D0A1B42613BF0F5C4E70C31CA10544510CFAC6C','STRING',0,5,1700000002000,1700000003000,1700000003000);
CREATE TABLE devices (
	iccid VARCHAR(20) NOT NULL, 
	imsi VARCHAR(15), 
	ip VARCHAR(45), 
	name VARCHAR(64), 
	status VARCHAR(8) NOT NULL, 
	created_at BIGINT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	version BIGINT NOT NULL, last_seen_at BIGINT, 
	PRIMARY KEY (iccid), 
	CONSTRAINT devices_ip_once UNIQUE (ip), 
	CONSTRAINT devices_status_known CHECK (status IN ('ACTIVE', 'INACTIVE'))
);
INSERT INTO "devices" VALUES('8988280666000000001','901405100000001','10.0.0.1','boiler','ACTIVE',1700000000000,1700000003000,5,1700000004000);
INSERT INTO "devices" VALUES('8988280666000000002',NULL,'2001:db8::2','Zähler','INACTIVE',1700000001000,1700000001000,2,NULL);
CREATE TABLE devices_removed (
	iccid VARCHAR(20) NOT NULL, 
	version BIGINT NOT NULL, 
	PRIMARY KEY (iccid)
);
INSERT INTO "devices_removed" VALUES('8988280666000000003',4);
CREATE TABLE key_seal (
	fingerprint VARCHAR(32) NOT NULL
);
INSERT INTO "key_seal" VALUES('0c7f36f473b613d40da45987be4896fe');
CREATE TABLE registry_revision (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT registry_revision_pkc PRIMARY KEY (version_num)
);
INSERT INTO "registry_revision" VALUES('0004');
CREATE TABLE registry_version (
	n BIGINT NOT NULL
);
INSERT INTO "registry_version" VALUES(5);
CREATE TABLE templates (
	id VARCHAR(36) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	text TEXT NOT NULL, 
	status VARCHAR(8) NOT NULL, 
	created_at BIGINT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	version BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT templates_status_known CHECK (status IN ('ACTIVE', 'INACTIVE'))
);
INSERT INTO "templates" VALUES('0b5e9a52-58a4-4b1c-8f0e-0d4b5f2c6a11','meter','{"sense":[{"asset":"t","value":{"byte":0,"type":"int"}}]}','ACTIVE',1700000003000,1700000003000,5);
CREATE TABLE translations (
	day BIGINT NOT NULL, 
	iccid VARCHAR(20) NOT NULL, 
	messages BIGINT NOT NULL, 
	payload_bytes BIGINT NOT NULL, 
	document_bytes BIGINT NOT NULL, 
	PRIMARY KEY (day, iccid)
);
INSERT INTO "translations" VALUES(19675,'8988280666000000001',3,15,90);
CREATE INDEX devices_by_version ON devices (version);
CREATE INDEX devices_removed_by_version ON devices_removed (version);
CREATE INDEX device_keys_by_serial ON device_keys (serial);
COMMIT;
