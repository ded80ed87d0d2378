//! Programs that a test needs and a machine may lack.

use std::process::{Command, Stdio};

/// Whether all of these programs are there; a line says which is not. With `KIGO_NEED_TOOLS=1` a missing one is a failure.
pub fn have(programs: &[&str]) -> bool {
    for program in programs {
        let mut command = Command::new("sh");
        command.args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null());
        if !command.status().is_ok_and(|status| status.success()) {
            assert!(std::env::var("KIGO_NEED_TOOLS").as_deref() != Ok("1"), "{program} is missing");
            println!("skipped: {program} is missing");
            return false;
        }
    }
    true
}
