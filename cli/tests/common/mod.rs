//! Saying that a test is skipped.

use std::io::Write;

/// Says which test is skipped, and why, past the test harness, which would keep it to itself; an
/// error where skipping is forbidden (EGRET_TESTS_NO_SKIP).
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    assert!(
        std::env::var_os("EGRET_TESTS_NO_SKIP").is_none(),
        "{test} may not be skipped: {why}"
    );
    let _ = writeln!(std::io::stderr(), "skipped {test}: {why}");
}
