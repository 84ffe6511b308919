//! Output that cannot be written: status 73, no guest where it can be told before, and a file that
//! is there as a whole or not at all.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use black_box::code::{GREETING, hello, silent, spinning};
use black_box::elf::Elf;
use black_box::{Live, Run, arg, command, file, finish, names, needs_kvm, run, skip, unprivileged};
use exitvisor::profile::load;
use exitvisor::status::{OUTPUT, TIMEOUT, USAGE};
use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir};

/// A folder for images, and an image in it.
struct Guest {
    _folder: TempDir,
    image: PathBuf,
}

impl Guest {
    fn new(elf: &Elf) -> Self {
        let folder = tempdir().unwrap();
        let image = elf.write(folder.path());
        Self {
            _folder: folder,
            image,
        }
    }

    /// The arguments of a run that writes its profile there.
    fn writing<'a>(&'a self, command: &'a str, output: &'a Path) -> Vec<&'a str> {
        let (image, output) = (arg(&self.image), arg(output));
        let options = ["--timeout", "20s", "--format", "json"];
        [
            &[command, "--kernel", image, "--output", output][..],
            &options,
        ]
        .concat()
    }
}

/// A saved profile.
fn saved(folder: &Path) -> PathBuf {
    let path = folder.join("saved.json");
    let guest = Guest::new(&silent());
    run(&guest.writing("profile", &path)).expect_status(0);
    path
}

#[track_caller]
fn is_profile(path: &Path) {
    load::load(path).unwrap_or_else(|e| panic!("{e}"));
}

/// Expects that the guest does not even boot (it would never end) because this cannot be written.
#[track_caller]
fn refused_before_the_guest(output: &Path, why: &str) {
    let guest = Guest::new(&spinning());
    for command in ["run", "profile"] {
        let run = run(&guest.writing(command, output)).expect_status(OUTPUT);
        let run = run.expect_one_line(&["cannot write", arg(output), why]);
        assert_eq!(run.stdout, "");
    }
}

/// Expects that `report` and `compare` cannot write there either.
#[track_caller]
fn refused_to_reports(output: &Path, why: &str) {
    let folder = tempdir().unwrap();
    let profile = saved(folder.path());
    let profile = arg(&profile);
    for args in [&["report", profile][..], &["compare", profile, profile]] {
        let run = run(&[args, &["--output", arg(output)]].concat()).expect_status(OUTPUT);
        let run = run.expect_one_line(&["cannot write", arg(output), why]);
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn nowhere() {
    needs_kvm!("nowhere");
    let folder = tempdir().unwrap();
    for (output, why) in [
        (folder.path().join("no/p.json"), "there is no directory"),
        (
            file(folder.path(), "file", b"").join("p.json"),
            "not a directory",
        ),
    ] {
        refused_before_the_guest(&output, why);
        refused_to_reports(&output, why);
    }
    refused_before_the_guest(folder.path(), "is a directory");
    refused_to_reports(folder.path(), "is a directory");
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn over_an_image() {
    let folder = tempdir().unwrap();
    let image = silent().write(folder.path());
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    for output in [&image, &link] {
        let args = ["run", "--kernel", arg(&image), "--output", arg(output)];
        let run = run(&args).expect_status(USAGE);
        run.expect_one_line(&["--output", arg(output), "would overwrite what is booted"]);
    }
    assert_eq!(fs::read(&image).unwrap(), silent().bytes());
}

#[test]
fn read_only() {
    needs_kvm!("read_only");
    let folder = tempdir().unwrap();
    let old = file(folder.path(), "old.json", b"old");
    let (images, profiles) = (tempdir().unwrap(), tempdir().unwrap());
    let image = spinning().write(images.path());
    let profile = saved(profiles.path());
    for open in [images.path(), profiles.path(), folder.path()] {
        fs::set_permissions(open, Permissions::from_mode(0o555)).unwrap();
    }
    fs::set_permissions(&old, Permissions::from_mode(0o444)).unwrap();
    for output in [&old, &folder.path().join("new.json")] {
        for args in [
            &["profile", "--kernel", arg(&image)][..],
            &["report", arg(&profile)],
        ] {
            let args = [args, &["--output", arg(output)]].concat();
            let Some(mut command) = unprivileged(&args) else {
                return skip("read_only", "only root can start exitvisor here");
            };
            let run = finish(command.spawn().unwrap()).expect_status(OUTPUT);
            run.expect_one_line(&["cannot write", arg(output), "permission denied"]);
        }
    }
    assert_eq!(fs::read(&old).unwrap(), b"old");
    // So that the folders can be removed.
    for open in [images.path(), profiles.path(), folder.path()] {
        fs::set_permissions(open, Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_full_device() {
    needs_kvm!("a_full_device");
    let full = Path::new("/dev/full");
    let guest = Guest::new(&silent());
    for command in ["run", "profile"] {
        let run = run(&guest.writing(command, full)).expect_status(OUTPUT);
        run.expect_one_line(&["cannot write /dev/full: no space left on device"]);
    }
    refused_to_reports(full, "no space left on device");
}

/// Runs this with standard output on a full device.
#[track_caller]
fn to_a_full_device(args: &[&str]) -> Run {
    let mut command = command(args);
    command.stdout(OpenOptions::new().write(true).open("/dev/full").unwrap());
    finish(command.spawn().unwrap())
        .expect_status(OUTPUT)
        .expect_one_line(&["cannot write standard output: no space left on device"])
}

#[test]
fn standard_output_is_full() {
    needs_kvm!("standard_output_is_full");
    let guest = Guest::new(&silent());
    for format in ["text", "json", "csv"] {
        to_a_full_device(&["profile", "--kernel", arg(&guest.image), "--format", format]);
    }
    let folder = tempdir().unwrap();
    let profile = saved(folder.path());
    to_a_full_device(&["report", arg(&profile)]);
    to_a_full_device(&["compare", arg(&profile), arg(&profile)]);
    to_a_full_device(&["--help"]);
    to_a_full_device(&["--version"]);
}

/// Runs this with standard output on a pipe that nobody reads any more.
#[track_caller]
fn to_nobody(args: &[&str]) -> Run {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = command(args);
    command.stdout(writer);
    let child = command.spawn().unwrap();
    drop(command);
    finish(child)
}

#[test]
fn a_reader_that_has_gone_has_seen_enough() {
    needs_kvm!("a_reader_that_has_gone_has_seen_enough");
    let folder = tempdir().unwrap();
    let profile = saved(folder.path());
    let profile = arg(&profile);
    for args in [
        &["report", profile][..],
        &["report", profile, "--format", "json"],
        &["compare", profile, profile],
        &["--help"],
        &["run", "--help"],
        &["--version"],
    ] {
        let run = to_nobody(args).expect_status(0);
        assert_eq!(run.stderr, "");
    }
}

#[test]
fn a_fresh_profile_that_nobody_takes_is_an_error() {
    needs_kvm!("a_fresh_profile_that_nobody_takes_is_an_error");
    let guest = Guest::new(&silent());
    let run = to_nobody(&["profile", "--kernel", arg(&guest.image)]).expect_status(OUTPUT);
    run.expect_one_line(&["cannot write standard output: broken pipe"]);
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    needs_kvm!("a_closed_standard_output_is_no_panic");
    let guest = Guest::new(&hello());
    // A shell can close descriptors; `Command` cannot.
    let mut shell = std::process::Command::new("sh");
    let run = shell
        .args(["-c", r#"exec "$@" <&- >&- 2>&-"#, "sh"])
        .arg(black_box::exitvisor())
        .args(["run", "--kernel", arg(&guest.image)])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(run.code(), Some(0));
}

#[test]
fn an_old_file_is_replaced_as_a_whole() {
    needs_kvm!("an_old_file_is_replaced_as_a_whole");
    let folder = tempdir().unwrap();
    let output = file(folder.path(), "profile.json", &[b'x'; 100_000]);
    let old = File::open(&output).unwrap();
    let guest = Guest::new(&silent());
    let run = run(&guest.writing("profile", &output)).expect_status(0);
    assert_eq!((&run.stdout[..], &run.stderr[..]), ("", ""));
    is_profile(&output);
    // Who had the old one open reads on in the old one.
    assert_eq!(std::io::read_to_string(old).unwrap().len(), 100_000);
    assert_eq!(names(folder.path()), ["profile.json"]);
}

#[test]
fn a_run_that_is_killed_leaves_the_old_file() {
    needs_kvm!("a_run_that_is_killed_leaves_the_old_file");
    let folder = tempdir().unwrap();
    let old = file(folder.path(), "old.json", b"old");
    let guest = Guest::new(&spinning());
    for output in [&old, &folder.path().join("new.json")] {
        let mut live = Live::of(black_box::start(&guest.writing("run", output)));
        live.wait_for(GREETING);
        live.signal(Signal::SIGKILL);
        assert_eq!(live.finish().status, -9);
        assert_eq!(fs::read(&old).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["old.json"], "no new name");
    }
}

#[test]
fn a_run_that_is_cut_short_is_saved_as_a_whole() {
    needs_kvm!("a_run_that_is_cut_short_is_saved_as_a_whole");
    let folder = tempdir().unwrap();
    let output = file(folder.path(), "profile.json", b"old");
    let guest = Guest::new(&spinning());
    let args = guest.writing("run", &output);
    let run = run(&[&args[..2 + 3], &["--format", "json", "--timeout", "300ms"]].concat());
    let run = run.expect_status(TIMEOUT).expect_one_line(&["cut short"]);
    assert_eq!(run.stdout, GREETING);
    is_profile(&output);
    assert!(load::load(&output).unwrap().end.cut_short);
    assert_eq!(names(folder.path()), ["profile.json"]);
}

#[test]
fn a_refused_image_leaves_the_old_file() {
    let folder = tempdir().unwrap();
    let output = file(folder.path(), "profile.json", b"old");
    let args = ["profile", "--kernel", "/nowhere", "--output", arg(&output)];
    run(&args).expect_one_line(&["kernel /nowhere"]);
    assert_eq!(fs::read(&output).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["profile.json"]);
}
