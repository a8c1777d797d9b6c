BEGIN TRANSACTION;
CREATE TABLE cases (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	case_id VARCHAR NOT NULL, 
	patient_id VARCHAR NOT NULL, 
	UNIQUE (case_id)
);
INSERT INTO "cases" VALUES(1,'P1','P1');
INSERT INTO "cases" VALUES(2,'P2/before','P2');
INSERT INTO "cases" VALUES(3,'P2/after','P2');
CREATE TABLE failures (
	path VARCHAR NOT NULL, 
	reason VARCHAR NOT NULL, 
	PRIMARY KEY (path)
);
INSERT INTO "failures" VALUES('/mri/broken','cannot be read');
CREATE TABLE history (
	id INTEGER NOT NULL, 
	time VARCHAR NOT NULL, 
	command VARCHAR NOT NULL, 
	outcome JSON NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE labels (
	patient_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY (patient_id, name)
);
INSERT INTO "labels" VALUES('P1','who_grade','2');
INSERT INTO "labels" VALUES('P2','who_grade','4');
CREATE TABLE meta (
	"key" VARCHAR NOT NULL, 
	value INTEGER NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('revision',1);
CREATE TABLE roots (
	path VARCHAR NOT NULL, 
	labels VARCHAR NOT NULL, 
	PRIMARY KEY (path)
);
CREATE TABLE scans (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	source INTEGER NOT NULL, 
	"case" INTEGER NOT NULL, 
	channel INTEGER NOT NULL, 
	sequence VARCHAR, 
	modality VARCHAR, 
	series_id VARCHAR NOT NULL, 
	shape JSON NOT NULL, 
	spacing JSON, 
	input_hash VARCHAR NOT NULL, 
	embedding_hash VARCHAR NOT NULL, 
	FOREIGN KEY(source) REFERENCES sources (id) ON DELETE CASCADE, 
	FOREIGN KEY("case") REFERENCES cases (id) ON DELETE CASCADE
);
INSERT INTO "scans" VALUES(1,1,1,0,'t1','MR','s','[8, 8, 2]','[1.0, 1.0, 2.0]','h1','d17ab65ba6dbfbcb27458a735048ae1fe4d2b67d740f4c712cd84b54f1728466');
INSERT INTO "scans" VALUES(2,1,1,1,'t1','MR','s','[8, 8, 2]','[1.0, 1.0, 2.0]','h2','84b12f9fd83ece492b4978fb20d88bc94e59b69442d46be71e1150a142121aee');
INSERT INTO "scans" VALUES(3,2,2,0,'t1','MR','s','[8, 8, 2]','[1.0, 1.0, 2.0]','h3','5d52d13eb2590bb833d6828b1d89b2e7dd701472083cc41149ab0ae43bc6d7ed');
INSERT INTO "scans" VALUES(4,3,3,0,'flair','MR','s','[8, 8, 2]','[1.0, 1.0, 2.0]','h4','9dc2539d6ed2023544c293d56f5fdd9c4d38550df9d30c27e4227638f83516b1');
INSERT INTO "scans" VALUES(5,3,3,1,'composite','MR','s','[8, 8, 2]','[1.0, 1.0, 2.0]','h5','a640338e032f43c95586365eb804c3189c146a0f644c7f26d9a42b3bee8da726');
CREATE TABLE slices (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	scan INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	"view" INTEGER NOT NULL, 
	weight FLOAT NOT NULL, 
	embedding BLOB NOT NULL, 
	FOREIGN KEY(scan) REFERENCES scans (id) ON DELETE CASCADE
);
INSERT INTO "slices" VALUES(1,1,0,0,1.0,X'D9625B3E7565023F34C5513EDFD14EBF');
INSERT INTO "slices" VALUES(2,1,1,0,1.0,X'07B6343FD931B23EA75AD6BE25FCE73E');
INSERT INTO "slices" VALUES(3,2,0,0,1.0,X'F290983DDEED52BED8AB26BE7F4876BF');
INSERT INTO "slices" VALUES(4,2,1,0,1.0,X'4506493F629AFF3E9A6511BEB0DDAC3E');
INSERT INTO "slices" VALUES(5,3,0,0,1.0,X'5E291C3F2C8C43BF82EDFF3DB6C52DBE');
INSERT INTO "slices" VALUES(6,3,1,0,1.0,X'F9555DBE46D8D2BDB9EE76BFE8D1E2BD');
INSERT INTO "slices" VALUES(7,4,0,0,1.0,X'287DAEBE8D17BBBDF0B15E3F5375B03E');
INSERT INTO "slices" VALUES(8,4,1,0,1.0,X'AF766EBFF08441BB9B27B5BE1DBFAC3D');
INSERT INTO "slices" VALUES(9,5,0,0,1.0,X'ABEAFCBE51D750BFA5A81CBE149A843E');
INSERT INTO "slices" VALUES(10,5,1,0,1.0,X'A104433F35A9963D35BDBDBEE9B706BF');
CREATE TABLE sources (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	path VARCHAR NOT NULL, 
	fingerprint VARCHAR NOT NULL, 
	record JSON NOT NULL, 
	UNIQUE (path)
);
INSERT INTO "sources" VALUES(1,'/mri/a','f','{"kind": "nifti"}');
INSERT INTO "sources" VALUES(2,'/mri/b','f','{"kind": "nifti"}');
INSERT INTO "sources" VALUES(3,'/mri/c','f','{"kind": "nifti"}');
CREATE TABLE strangeness (
	scan INTEGER NOT NULL, 
	value FLOAT NOT NULL, 
	PRIMARY KEY (scan), 
	FOREIGN KEY(scan) REFERENCES scans (id) ON DELETE CASCADE
);
INSERT INTO "strangeness" VALUES(1,0.5);
CREATE TABLE trained_on (
	patient_id VARCHAR NOT NULL, 
	PRIMARY KEY (patient_id)
);
INSERT INTO "trained_on" VALUES('P2');
CREATE INDEX ix_cases_patient_id ON cases (patient_id);
CREATE INDEX ix_scans_source ON scans (source);
CREATE INDEX ix_scans_case ON scans ("case");
CREATE INDEX ix_scans_series_id ON scans (series_id);
CREATE INDEX ix_scans_input_hash ON scans (input_hash);
CREATE INDEX ix_slices_scan ON slices (scan);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('sources',3);
INSERT INTO "sqlite_sequence" VALUES('cases',3);
INSERT INTO "sqlite_sequence" VALUES('scans',5);
INSERT INTO "sqlite_sequence" VALUES('slices',10);
COMMIT;
