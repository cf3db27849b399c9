//! One bitcoind process that cannot outlive us.
//!
//! A small shell stands between: it starts bitcoind and kills it when the pipe on its stdin
//! closes. The pipe's other end is ours, so the kernel closes it however we end: dropped, panicked
//! or killed. (`PR_SET_PDEATHSIG` would fire when the *thread* that started the node ends, which
//! is wrong under tokio, and exists on Linux only.)

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// `$1` is the data directory, the rest is the command. Status 137 is death by SIGKILL: nobody
/// will look at the directory any more.
const GUARD: &str = r#"
trap '' INT
dir=$1
shift
exec 3<&0
"$@" 3<&- </dev/null &
node=$!
{ read -r _ <&3; kill -9 "$node"; } 2>/dev/null &
watch=$!
exec 3<&-
wait "$node"
status=$?
kill -9 "$watch" 2>/dev/null
[ "$status" = 137 ] && rm -rf -- "$dir"
exit "$status"
"#;

/// A running bitcoind; killed, with its data directory removed, when dropped.
#[derive(Debug)]
pub(crate) struct GuardedProcess {
    guard: Child,
}

impl GuardedProcess {
    /// Starts `bitcoind`, its stderr going to the file `stderr` in `datadir`.
    pub(crate) fn spawn(bitcoind: &Path, datadir: &Path, args: &[String]) -> io::Result<Self> {
        let stderr = File::create(datadir.join("stderr"))?;
        let guard = Command::new("sh")
            .args(["-c", GUARD, "bitcoind-guard"])
            .arg(datadir)
            .arg(bitcoind)
            .arg(format!("-datadir={}", datadir.display()))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()?;
        Ok(Self { guard })
    }

    /// The status bitcoind ended with, `None` while it runs.
    pub(crate) fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.guard.try_wait()
    }
}

impl Drop for GuardedProcess {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // Nothing is left to do about a guard that cannot be waited for.
        let _ = self.guard.wait();
    }
}
