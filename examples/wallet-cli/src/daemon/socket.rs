//! The socket commands connect to: in the wallet's directory, for its owner only.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::protocol::Failure;

/// The operating system's limit for a socket's path, less one.
const MAX_PATH_BYTES: usize = 107;

/// Where the socket of the wallet in `dir` stands.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("wallet.sock")
}

/// Listens. The caller has made sure that no other process runs this wallet.
pub(super) fn bind(dir: &Path) -> Result<UnixListener, Failure> {
    let path = path(dir);
    let length = path.as_os_str().len();
    if length > MAX_PATH_BYTES {
        let message = format!(
            "the path of the socket, {}, has {length} bytes; a socket's has at most \
             {MAX_PATH_BYTES}",
            path.display()
        );
        return Err(Failure::new("path_too_long", message).hint("choose a shorter --dir"));
    }
    let bound = || {
        remove_stale(&path)?;
        // Under a name nobody looks for, until only we may connect.
        let early = path.with_extension("new");
        remove_stale(&early)?;
        let listener = UnixListener::bind(&early)?;
        std::fs::set_permissions(&early, Permissions::from_mode(0o600))?;
        std::fs::rename(&early, &path)?;
        Ok(listener)
    };
    bound().map_err(|error: std::io::Error| {
        Failure::new("socket_failed", format!("{}: {error}", path.display()))
    })
}

/// Ends the socket's name; what does not work is left to the next start.
pub(super) fn remove(dir: &Path) {
    let _ = std::fs::remove_file(path(dir));
}

fn remove_stale(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(std::io::Error::new(
            ErrorKind::AlreadyExists,
            "something else than a socket stands there",
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_over_is_replaced_and_only_ours() {
        let dir = tempfile::tempdir().unwrap();
        drop(bind(dir.path()).unwrap());
        assert!(
            path(dir.path()).exists(),
            "a dropped listener leaves its name"
        );
        let _listener = bind(dir.path()).unwrap();
        let found = std::fs::metadata(path(dir.path())).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        tokio::net::UnixStream::connect(path(dir.path()))
            .await
            .unwrap();
        remove(dir.path());
        assert!(!path(dir.path()).exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(path(dir.path()), "precious").unwrap();
        assert_eq!(bind(dir.path()).unwrap_err().code, "socket_failed");
        assert_eq!(
            std::fs::read_to_string(path(dir.path())).unwrap(),
            "precious"
        );
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_named() {
        let dir = PathBuf::from("/tmp").join("x".repeat(100));
        assert_eq!(bind(&dir).unwrap_err().code, "path_too_long");
    }
}
