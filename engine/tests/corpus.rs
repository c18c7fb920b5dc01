//! Replays the seeds of the fuzz targets, and every input that once made one fail, through the same
//! functions.
//!
//! `engine/fuzz/seeds/TARGET/` has them; a finding goes there under a name that says what was wrong.

#[path = "corpus/targets.rs"]
mod targets;

use std::{fs, path::Path};

#[test]
fn decoder_seeds() {
    replay("decoder", targets::decoder);
}

#[test]
fn handshake_seeds() {
    replay("handshake", targets::handshake);
}

#[test]
fn connection_seeds() {
    replay("connection", targets::connection);
}

/// Runs every seed, whole and cut short, and says which one failed.
fn replay(name: &'static str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut seeds = 0;
    for entry in fs::read_dir(&folder).expect("a folder of seeds") {
        let path = entry.expect("an entry of the folder").path();
        let seed = fs::read(&path).expect("a seed");
        let outcome = std::panic::catch_unwind(|| {
            for end in (0..seed.len()).step_by(seed.len() / 16 + 1) {
                target(&seed[..end]);
            }
            target(&seed);
        });
        assert!(outcome.is_ok(), "{}", path.display());
        seeds += 1;
    }
    assert!(seeds > 0, "{} is empty", folder.display());
}
