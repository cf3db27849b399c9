//! A running program that says on stdout when it is ready and logs to stderr.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use superscalar_regtest::wait_until;

/// How long a program may take to be ready or to end, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Ends with our end of its stdin, however we end, and takes the process `$1` with it.
const WATCH: &str = r#"read -r _; kill -9 "$1" 2>/dev/null"#;

/// A process; killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    watch: Child,
    log: PathBuf,
    /// The line it printed when it was ready.
    pub ready: Value,
}

impl Program {
    /// Starts it, its log going to the end of `log`, and waits for its ready line.
    ///
    /// # Errors
    /// When it ends before, with its log.
    pub fn start(command: &mut Command, log: &Path) -> Result<Program> {
        let stderr = File::options().create(true).append(true).open(log)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let watch = Command::new("sh")
            .args(["-c", WATCH, "watch", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let watch = match watch {
            Ok(watch) => watch,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error).context("no shell to watch over a process");
            }
        };
        let mut program = Program {
            child,
            watch,
            log: log.to_owned(),
            ready: Value::Null,
        };
        let (said, lines) = mpsc::channel();
        // Reads to the end, so that the program never writes into a closed pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = said.send(line);
            }
        });
        match lines.recv_timeout(LIMIT) {
            Ok(line) => program.ready = serde_json::from_str(&line).context(line)?,
            Err(_) => {
                let ended = program.child.try_wait()?;
                bail!("{command:?} is not ready ({ended:?}): {}", program.log());
            }
        }
        Ok(program)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once by SIGKILL: it has no say in it.
    pub fn kill(&mut self) {
        // First: the id may be given to another process once this one is waited for.
        let _ = self.watch.kill();
        let _ = self.watch.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end by SIGTERM.
    ///
    /// # Errors
    /// When no signal can be sent.
    pub fn terminate(&self) -> Result<()> {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status()?;
        anyhow::ensure!(sent.success(), "process {id} is gone");
        Ok(())
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not within two minutes.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        wait_until("a program to end", LIMIT, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        status.context("it ended")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}
