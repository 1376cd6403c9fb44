//! The real binaries, as a user runs them.

use std::path::PathBuf;

/// The path of a binary of this workspace, built in the profile of the running test.
///
/// # Panics
/// If it is not built: `cargo build --release` comes before the tests.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    let profile = test.ancestors().nth(2).expect("target folder of this test");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --release` first",
        path.display()
    );
    path
}
