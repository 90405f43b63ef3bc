//! Files that are removed, replaced, torn, full or read-only under a running service.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use handoff_testkit::fixture::{Fixture, Setup, Upgrade};

use crate::daemons::drains_of;
use crate::skip::{self, Need};
use crate::stage::{Stage, within_patience};
use crate::strace::Strace;
use crate::{Outcome, check, trials};

trials![
    the_lock_file_is_removed,
    the_lock_file_is_replaced,
    the_pidfile_lies,
    no_block_is_left_for_the_data,
    no_inode_is_left_for_the_data,
    no_block_is_left_for_the_journal,
    no_inode_is_left_for_the_journal,
    the_journal_can_not_be_written,
    the_state_file_system_is_read_only,
    the_journal_is_torn,
];

/// Nobody else gets the data, in this process and by the program, which names its true owner.
fn is_held(fixture: &Fixture) -> Outcome {
    let owner = fixture.incumbent_pid()?;
    match handoff_lock::DataDirLock::acquire(fixture.data_dir()) {
        Err(handoff_lock::LockError::Held { holder }) => {
            check(holder.as_ref().is_some_and(|it| it.pid == owner), format!("{owner} holds it, not {holder:?}"))
        }
        other => Err(format!("the data is {owner}'s, and not to be had: {other:?}").into()),
    }
}

fn the_lock_file_is_removed() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    fs::remove_file(stage.fixture.data_dir().join(".handoff.lock"))?;
    is_held(&stage.fixture)?;
    stage.hands_over()?;
    is_held(&stage.fixture)?;
    stage.finish()
}

fn the_lock_file_is_replaced() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    let theirs = stage.fixture.data_dir().join("theirs");
    fs::write(&theirs, "")?;
    fs::rename(&theirs, stage.fixture.data_dir().join(".handoff.lock"))?;
    is_held(&stage.fixture)?;
    stage.hands_over()?;
    is_held(&stage.fixture)?;
    stage.finish()
}

fn the_pidfile_lies() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    let pidfile = stage.fixture.data_dir().join(".handoff.pidfile");
    // Somebody who lives, somebody who can't, and nobody.
    for lie in ["1\n", "4194304\n", "none\n"] {
        fs::write(&pidfile, lie)?;
        is_held(&stage.fixture)?;
        stage.hands_over()?;
    }
    stage.finish()
}

#[derive(Debug, Clone, Copy)]
enum Resource {
    Blocks,
    Inodes,
}

/// A small file system of its own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        fs::create_dir_all(at)?;
        let mut mounted = Command::new("mount");
        mounted.args(["-t", "tmpfs", "-o", "size=1m,nr_inodes=200", "handoff-test"]).arg(at).stderr(Stdio::null());
        if !mounted.status().is_ok_and(|status| status.success()) {
            return Err(skip::without(Need::Mount, "no file system can be mounted here"));
        }
        Ok(Self(at.to_owned()))
    }

    /// Takes all that is left.
    fn fill(&self, what: Resource) -> std::io::Result<()> {
        let filler = self.0.join("filler");
        match what {
            Resource::Blocks => {
                let mut filler = File::create(filler)?;
                while filler.write_all(&[0; 512]).is_ok() {}
            }
            Resource::Inodes => {
                fs::create_dir(&filler)?;
                let mut number = 0;
                while File::create(filler.join(number.to_string())).is_ok() {
                    number += 1;
                }
            }
        }
        Ok(())
    }

    fn empty(&self) -> std::io::Result<()> {
        let filler = self.0.join("filler");
        if filler.is_dir() { fs::remove_dir_all(filler) } else { fs::remove_file(filler) }
    }

    fn remount(&self, how: &str) -> Outcome {
        let status = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.0).status()?;
        check(status.success(), format!("remount {how}"))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn no_block_is_left_for_the_data() -> Outcome {
    the_data_file_system_is_full(Resource::Blocks)
}

fn no_inode_is_left_for_the_data() -> Outcome {
    the_data_file_system_is_full(Resource::Inodes)
}

/// The lock needs no room. The store may need some: then the handover is undone, and the old process serves on.
fn the_data_file_system_is_full(what: Resource) -> Outcome {
    let home = tempfile::tempdir()?;
    let data = home.path().join("data");
    let disk = SmallDisk::mount(&data)?;
    let mut fixture = Setup::store()?.data_dir(&data).arg("--connections").arg("4").start()?;
    let address = fixture.address("http")?;
    disk.fill(what)?;
    goes_on_or_is_undone(&fixture)?;
    disk.empty()?;
    let mut reply = [0; 3];
    let mut client = std::net::TcpStream::connect(address)?;
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    client.write_all(b"INC key token\n")?;
    client.read_exact(&mut reply)?;
    check(reply == *b"OK ", format!("a write is acknowledged: {reply:?}"))?;
    drop(client);
    let next = fixture.upgrade(&[])?;
    check(next.committed(), format!("{next:?}\n{}", fixture.log()))?;
    fixture.stop().map(drop).map_err(Into::into)
}

/// The handover commits, or ends with one line that says why and the old process in service.
fn goes_on_or_is_undone(fixture: &Fixture) -> Result<Upgrade, Box<dyn std::error::Error>> {
    let before = fixture.incumbent_pid()?;
    let upgrade = fixture.upgrade(&[])?;
    if !upgrade.committed() {
        check(matches!(upgrade.code, Some(2 | 3)), format!("{upgrade:?}"))?;
        check(upgrade.stderr.trim_end().lines().count() == 1, format!("one line says why: {upgrade:?}"))?;
        check(fixture.incumbent_pid()? == before, format!("the old process serves on: {upgrade:?}"))?;
        check(within_patience(|| fixture.processes().len() == 2), format!("{:?} live", fixture.processes()))?;
    }
    Ok(upgrade)
}

/// A service whose state directory is a file system of its own.
fn on_a_small_disk() -> Result<(SmallDisk, Fixture), Box<dyn std::error::Error>> {
    let mut fixture = Setup::role("daemon-ours")?.listener("http", "127.0.0.1:0").prepare()?;
    let disk = SmallDisk::mount(&fixture.state_dir())?;
    fixture.start_supervisor()?;
    Ok((disk, fixture))
}

/// The handover commits, or is refused before anybody was drained.
fn goes_on_or_is_refused(fixture: &Fixture) -> Outcome {
    let drains = drains_of(fixture.data_dir())?;
    let upgrade = goes_on_or_is_undone(fixture)?;
    let is_drained = drains_of(fixture.data_dir())? != drains;
    check(upgrade.committed() || !is_drained, format!("nobody was drained for nothing: {upgrade:?}"))
}

fn the_next_commits(fixture: &Fixture) -> Outcome {
    let next = fixture.upgrade(&[])?;
    check(next.committed(), format!("{next:?}\n{}", fixture.log()))
}

fn no_block_is_left_for_the_journal() -> Outcome {
    the_state_file_system_is_full(Resource::Blocks)
}

fn no_inode_is_left_for_the_journal() -> Outcome {
    the_state_file_system_is_full(Resource::Inodes)
}

fn the_state_file_system_is_full(what: Resource) -> Outcome {
    let (disk, fixture) = on_a_small_disk()?;
    disk.fill(what)?;
    match what {
        Resource::Blocks => goes_on_or_is_refused(&fixture)?,
        // The control socket is here too, and the successor's needs a name of its own.
        Resource::Inodes => drop(goes_on_or_is_undone(&fixture)?),
    }
    disk.empty()?;
    the_next_commits(&fixture)
}

/// As a disk does that the kernel has given up on: what is open for writing stays open, and can't be written.
fn the_journal_can_not_be_written() -> Outcome {
    let fixture = Setup::role("daemon-ours")?.listener("http", "127.0.0.1:0").start()?;
    let journal = fixture.state_dir().join("journal");
    let trace = fixture.path().join("trace");
    let journal = journal.to_string_lossy();
    let options = ["-f", "-b", "execve", "-P", &journal, "-e", "inject=all:error=EROFS"];
    let strace = Strace::attach(&trace, &options, &[fixture.supervisor_pid()])?;
    goes_on_or_is_refused(&fixture)?;
    let lines = strace.lines()?;
    check(lines.iter().any(|line| line.contains("EROFS")), format!("the journal was written to: {lines:?}"))?;
    the_next_commits(&fixture)
}

/// A supervisor that finds its state directory read-only says so and leaves; the daemon serves on, and is adopted later.
fn the_state_file_system_is_read_only() -> Outcome {
    let (disk, mut fixture) = on_a_small_disk()?;
    let before = fixture.incumbent_pid()?;
    fixture.kill_supervisor()?;
    disk.remount("ro")?;
    let config = fixture.path().join("handoff.toml");
    let refused = fixture.command(&["run", "--config", &config.to_string_lossy()])?.output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    let names_it = said.contains(&*fixture.state_dir().to_string_lossy()) && said.contains("ead-only");
    check(
        refused.status.code() == Some(3) && names_it && said.trim_end().lines().count() == 1,
        format!("{refused:?}"),
    )?;
    disk.remount("rw")?;
    fixture.start_supervisor()?;
    check(fixture.incumbent_pid()? == before, "the daemon was adopted")?;
    the_next_commits(&fixture)
}

fn the_journal_is_torn() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    let journal = stage.fixture.state_dir().join("journal");
    for torn in [&b"torn"[..], b"", &[0xff; 8192]] {
        fs::write(&journal, torn)?;
        stage.hands_over()?;
        fs::write(&journal, torn)?;
        stage.restart_supervisor()?;
        stage.serves()?;
        let kept: Vec<PathBuf> = (fs::read_dir(stage.fixture.state_dir())?.flatten())
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("journal."))
            .map(|entry| entry.path())
            .collect();
        check(
            torn.is_empty() || kept.len() == 1,
            format!("what could not be read is kept beside it, for people: {kept:?}"),
        )?;
        kept.iter().try_for_each(fs::remove_file)?;
        stage.hands_over()?;
    }
    stage.finish()
}
