//! The tables, and the migrations from older versions.
//!
//! Tables are strict, foreign keys restrict deletion, and nothing is replaced by deleting it: whatever
//! refers to a row must be removed before the row. Ids that name files come from a sequence, and are
//! never reused.
//!
//! The text of a migration never changes, not even its comments, since SQLite stores it in the database.
//! An object that the code calls tombstoned has the state `condemned`. A change of the schema is a new
//! migration, a new version, and a new fixture for `tests/versions.rs`.

/// The schema version that this program reads and writes.
pub(super) const VERSION: i64 = 3;

/// The migrations; the one at index *n* leads from version *n* to *n + 1*.
pub(super) const MIGRATIONS: [&str; 3] = [FIRST, SECOND, THIRD];

const FIRST: &str = "
CREATE TABLE store (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT;

-- One execution of the program that writes. Alive exactly if its lock file is locked; the other
-- columns are for display.
CREATE TABLE instance (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    boot TEXT NOT NULL,
    pid INTEGER NOT NULL,
    command TEXT NOT NULL,
    started INTEGER NOT NULL
) STRICT;

-- A layer or another blob. writing -> valid -> condemned -> (no row), or writing -> condemned.
CREATE TABLE object (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('writing', 'valid', 'condemned')),
    digest BLOB CHECK (digest IS NULL OR length(digest) = 32),
    size INTEGER NOT NULL DEFAULT 0,
    content BLOB CHECK (content IS NULL OR length(content) = 32),
    entries INTEGER NOT NULL DEFAULT 0,
    origin TEXT NOT NULL,
    maker INTEGER REFERENCES instance (id) ON DELETE RESTRICT,
    created INTEGER NOT NULL,
    used INTEGER NOT NULL,
    -- Made by an instance that did not end before power was lost: hash before first use.
    suspect INTEGER NOT NULL DEFAULT 0,
    -- Of its removal: how often it failed and why.
    tries INTEGER NOT NULL DEFAULT 0,
    trouble TEXT,
    CHECK (state <> 'valid' OR digest IS NOT NULL),
    CHECK (state <> 'writing' OR maker IS NOT NULL),
    CHECK (kind <> 'layer' OR state <> 'valid' OR content IS NOT NULL)
) STRICT;
CREATE UNIQUE INDEX object_valid ON object (digest, kind = 'layer') WHERE state = 'valid';
CREATE INDEX object_unfinished ON object (state) WHERE state <> 'valid';
CREATE INDEX object_maker ON object (maker) WHERE maker IS NOT NULL;

-- What a layer was made on top of. Only from a newer row to an older one: layers are shared by
-- content, so without that rule two builds could make each the parent of the other.
CREATE TABLE edge (
    child INTEGER NOT NULL REFERENCES object (id) ON DELETE RESTRICT,
    parent INTEGER NOT NULL REFERENCES object (id) ON DELETE RESTRICT,
    PRIMARY KEY (child, parent),
    CHECK (child > parent)
) STRICT, WITHOUT ROWID;
CREATE INDEX edge_parent ON edge (parent);

-- Step key -> layer. A hint: the object's row is the truth.
CREATE TABLE action (
    key BLOB PRIMARY KEY CHECK (length(key) = 32),
    object INTEGER NOT NULL REFERENCES object (id) ON DELETE RESTRICT,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX action_object ON action (object);

CREATE TABLE claim (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key BLOB NOT NULL UNIQUE CHECK (length(key) = 32),
    instance INTEGER NOT NULL REFERENCES instance (id) ON DELETE RESTRICT,
    since INTEGER NOT NULL
) STRICT;
CREATE INDEX claim_instance ON claim (instance);

CREATE TABLE lease (
    instance INTEGER NOT NULL REFERENCES instance (id) ON DELETE RESTRICT,
    object INTEGER NOT NULL REFERENCES object (id) ON DELETE RESTRICT,
    PRIMARY KEY (instance, object)
) STRICT, WITHOUT ROWID;
CREATE INDEX lease_object ON lease (object);

CREATE TABLE image (
    name TEXT PRIMARY KEY,
    manifest INTEGER NOT NULL REFERENCES object (id) ON DELETE RESTRICT,
    config INTEGER NOT NULL REFERENCES object (id) ON DELETE RESTRICT,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX image_manifest ON image (manifest);
CREATE INDEX image_config ON image (config);

CREATE TABLE image_layer (
    image TEXT NOT NULL REFERENCES image (name) ON DELETE RESTRICT,
    position INTEGER NOT NULL,
    object INTEGER NOT NULL REFERENCES object (id) ON DELETE RESTRICT,
    PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_layer_object ON image_layer (object);

-- Derived knowledge, such as what a compressed blob unpacks to. Hints.
CREATE TABLE fact (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- A thing outside the database. The row comes before the thing, and goes after its absence was
-- observed.
CREATE TABLE resource (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance INTEGER NOT NULL REFERENCES instance (id) ON DELETE RESTRICT,
    kind TEXT NOT NULL,
    path BLOB NOT NULL,
    pid INTEGER
) STRICT;
CREATE INDEX resource_instance ON resource (instance);

-- History. The instance is named and not referred to, since its row goes when it ends.
CREATE TABLE build (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance TEXT NOT NULL,
    context TEXT NOT NULL,
    dockerfile TEXT NOT NULL,
    target TEXT NOT NULL,
    started INTEGER NOT NULL,
    ended INTEGER,
    class TEXT,
    status INTEGER,
    message TEXT,
    image BLOB
) STRICT;

CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;
";

const SECOND: &str = "
-- Where the log of the run is that a claim stands for: who waits shows it.
ALTER TABLE claim ADD COLUMN build INTEGER;
ALTER TABLE claim ADD COLUMN step INTEGER;

-- How the user's command ended that a claim stood for: who waited takes it over. Hints, for a while.
CREATE TABLE failure (
    claim INTEGER PRIMARY KEY,
    build INTEGER NOT NULL,
    step INTEGER NOT NULL,
    status INTEGER NOT NULL,
    at INTEGER NOT NULL
) STRICT;
CREATE INDEX failure_at ON failure (at);
";

const THIRD: &str = "
-- Results and claims know whose they are. Nobody knows which steps the VMs of older results had run, so
-- these are forgotten; their layers stay until they are pruned.
DELETE FROM failure;
DROP TABLE claim;
DROP TABLE action;

-- A VM that ran steps. It belongs to its instance, and afterwards to the results that refer to it.
CREATE TABLE vm (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance INTEGER REFERENCES instance (id) ON DELETE RESTRICT
) STRICT;
CREATE INDEX vm_instance ON vm (instance) WHERE instance IS NOT NULL;

-- The steps that began in a VM, numbered from 1 in their order.
CREATE TABLE vm_step (
    vm INTEGER NOT NULL REFERENCES vm (id) ON DELETE RESTRICT,
    number INTEGER NOT NULL,
    key BLOB NOT NULL CHECK (length(key) = 32),
    name TEXT NOT NULL,
    PRIMARY KEY (vm, number)
) STRICT, WITHOUT ROWID;

-- Step key -> layer, for each trust domain; the empty domain is the host. A hint: the object's row is
-- the truth.
CREATE TABLE action (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key BLOB NOT NULL CHECK (length(key) = 32),
    domain TEXT NOT NULL,
    object INTEGER NOT NULL REFERENCES object (id) ON DELETE RESTRICT,
    created INTEGER NOT NULL,
    UNIQUE (key, domain)
) STRICT;
CREATE INDEX action_object ON action (object);

-- The VMs that could have influenced a result, each with the number of steps that it had run by then.
CREATE TABLE action_vm (
    action INTEGER NOT NULL REFERENCES action (id) ON DELETE RESTRICT,
    vm INTEGER NOT NULL REFERENCES vm (id) ON DELETE RESTRICT,
    steps INTEGER NOT NULL,
    PRIMARY KEY (action, vm)
) STRICT, WITHOUT ROWID;
CREATE INDEX action_vm_vm ON action_vm (vm);

CREATE TABLE claim (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key BLOB NOT NULL CHECK (length(key) = 32),
    domain TEXT NOT NULL,
    instance INTEGER NOT NULL REFERENCES instance (id) ON DELETE RESTRICT,
    since INTEGER NOT NULL,
    build INTEGER,
    step INTEGER,
    -- Where the step is running.
    vm INTEGER REFERENCES vm (id) ON DELETE RESTRICT,
    UNIQUE (key, domain)
) STRICT;
CREATE INDEX claim_instance ON claim (instance);
CREATE INDEX claim_vm ON claim (vm) WHERE vm IS NOT NULL;

-- The host's memory for VMs, asked for in the order of the ids.
CREATE TABLE memory (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance INTEGER NOT NULL REFERENCES instance (id) ON DELETE RESTRICT,
    bytes INTEGER NOT NULL,
    -- What VMs may have together, as this instance sees it.
    total INTEGER NOT NULL,
    held INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX memory_instance ON memory (instance);

-- What the steps of a build connected to, and how many connections more there were.
CREATE TABLE connection (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    build INTEGER NOT NULL REFERENCES build (id) ON DELETE RESTRICT,
    step INTEGER NOT NULL,
    at INTEGER NOT NULL,
    took INTEGER NOT NULL,
    protocol TEXT NOT NULL,
    name TEXT,
    address TEXT,
    port INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT,
    sent INTEGER NOT NULL,
    received INTEGER NOT NULL
) STRICT;
CREATE INDEX connection_build ON connection (build);

CREATE TABLE connection_left_out (
    build INTEGER NOT NULL REFERENCES build (id) ON DELETE RESTRICT,
    step INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (build, step)
) STRICT, WITHOUT ROWID;
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use rusqlite::Connection;

    use super::*;
    use crate::{OpenOptions, Store};

    /// Columns of all tables.
    fn columns(root: &Path) -> BTreeMap<String, Vec<String>> {
        let database = Connection::open(root.join("store.db")).unwrap();
        let mut rows = database
            .prepare(
                "SELECT t.name, c.name FROM pragma_table_list t, pragma_table_info(t.name) c \
                 WHERE t.strict ORDER BY 1, 2",
            )
            .unwrap();
        let mut rows = rows.query([]).unwrap();
        let mut columns: BTreeMap<String, Vec<String>> = BTreeMap::new();
        while let Some(row) = rows.next().unwrap() {
            let table = columns.entry(row.get(0).unwrap()).or_default();
            table.push(row.get(1).unwrap());
        }
        columns
    }

    #[test]
    fn a_store_of_any_version_becomes_one_of_this_version() {
        let open = |root: &Path| Store::open(root, &OpenOptions::default()).unwrap();
        let new = tempfile::tempdir().unwrap();
        open(new.path()).close().unwrap();
        for from in 1..MIGRATIONS.len() {
            let old = tempfile::tempdir().unwrap();
            let database = Connection::open(old.path().join("store.db")).unwrap();
            for step in &MIGRATIONS[..from] {
                database.execute_batch(step).unwrap();
            }
            database
                .execute_batch("INSERT INTO fact (kind, name, value) VALUES ('a', 'b', 'c')")
                .unwrap();
            database
                .pragma_update(None, "user_version", i64::try_from(from).unwrap())
                .unwrap();
            database.close().unwrap();
            for dir in ["blobs", "index"] {
                std::fs::create_dir(old.path().join(dir)).unwrap();
            }
            // Also by a reader: after an update, the first command may be one that only reads.
            let options = OpenOptions {
                read_only: true,
                ..OpenOptions::default()
            };
            let reader = Store::open(old.path(), &options).unwrap();
            assert_eq!(reader.fact("a", "b").unwrap().as_deref(), Some("c"));
            drop(reader);
            let store = open(old.path());
            assert_eq!(store.fact("a", "b").unwrap().as_deref(), Some("c"));
            assert!(store.check(false).unwrap().is_clean());
            store.close().unwrap();
            assert_eq!(columns(old.path()), columns(new.path()), "from {from}");
        }
        assert_eq!(VERSION, i64::try_from(MIGRATIONS.len()).unwrap());
        assert!(columns(new.path()).contains_key("object"));
    }
}
