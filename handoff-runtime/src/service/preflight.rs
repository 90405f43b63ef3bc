//! What is looked at before anything is touched. Nothing here creates, locks or changes a file.

use std::io;
use std::path::Path;

use handoff_lock::LockError;
use rustix::fs::Access;
use rustix::io::Errno;

use super::address::Address;
use super::config::ServiceConfig;
use super::error::ServiceError;
use super::state_dir;
use crate::control::check_socket_path;
use crate::events;

/// Everything that can be seen from the configuration and the file system alone. `binary` is what would be started.
///
/// # Errors
/// The first thing that is wrong, in one line.
pub(super) fn check(config: &ServiceConfig, binary: &Path) -> Result<(), ServiceError> {
    check_listeners(config)?;
    check_socket_path(&config.control_socket)?;
    check_socket_path(&config.admin_socket())?;
    check_binary(binary)?;
    if let Some(data_dir) = &config.data_dir {
        check_data_dir(data_dir)?;
    }
    state_dir::check_creatable(&config.state_dir)?;
    match config.control_socket.parent() {
        Some(dir) if dir != config.state_dir => check_writable(dir)
            .map_err(|source| crate::Error::io(format!("control socket {}", config.control_socket.display()), source))
            .map_err(ServiceError::Runtime),
        _ => Ok(()),
    }
}

/// Whether nobody holds the data directory's lock, or reads there. Looks only: the lock is the daemon's to take.
///
/// # Errors
/// [`ServiceError::DataDirLock`] names the holder, or the readers.
pub(super) fn check_data_dir_is_free(config: &ServiceConfig) -> Result<(), ServiceError> {
    let Some(data_dir) = &config.data_dir else { return Ok(()) };
    let refused = |source| ServiceError::DataDirLock { path: data_dir.clone(), source };
    if let Some(holder) = handoff_lock::holder(data_dir).map_err(refused)? {
        return Err(refused(LockError::Held { holder: Some(holder) }));
    }
    let readers = handoff_lock::readers(data_dir).map_err(refused)?;
    if readers.is_empty() { Ok(()) } else { Err(refused(LockError::BeingRead { readers })) }
}

/// Says so if other users may read the data directory, and with it lock it. Some want theirs to be read, so nothing is refused.
pub(super) fn tell_exposure(config: &ServiceConfig) {
    // One that is not there yet is created for its owner only, and one that can't be seen was refused before.
    if let Some(Ok(Some(exposure))) = config.data_dir.as_deref().map(handoff_lock::exposure) {
        events::warn!("{exposure}");
    }
}

/// Whether this file can be executed.
///
/// # Errors
/// [`ServiceError::Binary`].
pub(super) fn check_binary(path: &Path) -> Result<(), ServiceError> {
    let refused = |reason: String| ServiceError::Binary { path: path.to_owned(), reason };
    let file = path.metadata().map_err(|error| refused(error.to_string()))?;
    if !file.is_file() {
        return Err(refused("it is no file".to_owned()));
    }
    rustix::fs::access(path, Access::EXEC_OK)
        .map_err(|_| refused("permission denied: it is not executable (try chmod +x)".to_owned()))
}

fn check_listeners(config: &ServiceConfig) -> Result<(), ServiceError> {
    for (at, listen) in config.listeners.iter().enumerate() {
        if config.listeners[..at].iter().any(|other| other.name == listen.name) {
            return Err(ServiceError::ListenerTwice(listen.name.clone()));
        }
        if let Address::Unix(path) = &listen.address {
            check_socket_path(path)?;
        }
    }
    Ok(())
}

fn check_data_dir(dir: &Path) -> Result<(), ServiceError> {
    let refused = |source: io::Error| ServiceError::DataDir { path: dir.to_owned(), source };
    let there = match dir.metadata() {
        Ok(file) if !file.is_dir() => return Err(refused(Errno::NOTDIR.into())),
        Ok(_) => dir,
        // The daemon creates it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            dir.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"))
        }
        Err(error) => return Err(refused(error)),
    };
    check_writable(there).map_err(refused)?;
    let unlockable = |source| ServiceError::DataDirLock { path: dir.to_owned(), source };
    handoff_lock::check_filesystem(there).map_err(unlockable)
}

fn check_writable(dir: &Path) -> io::Result<()> {
    if !dir.metadata()?.is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    Ok(rustix::fs::access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::service::Listen;

    fn config(dir: &Path) -> ServiceConfig {
        ServiceConfig::new(dir.join("state"), "/bin/sh")
    }

    fn refusal(config: &ServiceConfig) -> String {
        let error = check(config, &config.binary).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    #[test]
    fn a_sound_configuration_passes_and_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.data_dir = Some(dir.path().join("data/deep"));
        config.listeners = vec!["a=127.0.0.1:1".parse().unwrap(), "b=unix:/tmp/x".parse().unwrap()];
        check(&config, &config.binary).unwrap();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_binary_must_be_there_and_executable() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "x").unwrap();
        std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut config = config(dir.path());
        for (binary, what) in
            [(plain, "not executable"), (dir.path().to_owned(), "no file"), ("/nowhere".into(), "No such")]
        {
            config.binary = binary;
            assert!(refusal(&config).contains(what));
        }
    }

    #[test]
    fn a_name_is_used_once_and_a_socket_path_fits() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let first: Listen = "http=127.0.0.1:1".parse().unwrap();
        config.listeners = vec![first.clone(), first];
        assert_eq!(refusal(&config), "two listeners are named \"http\"");
        config.listeners = vec![format!("x=unix:/{}", "y".repeat(200)).parse().unwrap()];
        assert!(refusal(&config).contains("201 bytes long"));
        config.listeners.clear();
        config.control_socket = Path::new("/tmp").join("z".repeat(120));
        assert!(refusal(&config).contains("use a shorter path"));
    }

    #[test]
    fn a_state_dir_that_makes_the_sockets_too_long_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir.path().join("d".repeat(120)));
        assert!(refusal(&config).contains("use a shorter path"));
    }

    #[test]
    fn a_data_dir_that_is_being_read_is_not_free_and_the_reader_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.data_dir = Some(dir.path().join("data"));
        std::fs::create_dir(dir.path().join("data")).unwrap();
        check_data_dir_is_free(&config).unwrap();
        let reading = handoff_lock::DataDirLock::acquire_shared(&dir.path().join("data")).unwrap();
        let refused = check_data_dir_is_free(&config).unwrap_err().to_string();
        assert!(refused.contains(&format!("read by pid {}", std::process::id())), "{refused}");
        drop(reading);
        check_data_dir_is_free(&config).unwrap();
    }

    #[test]
    fn a_data_dir_must_be_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let mut config = config(dir.path());
        for path in [file.clone(), file.join("below")] {
            config.data_dir = Some(path);
            assert!(refusal(&config).contains("data directory"));
        }
    }
}
