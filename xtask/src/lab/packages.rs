//! Debian packages without root and without touching the system: apt with a configuration of its
//! own resolves, fetches and verifies them, `dpkg-deb -x` unpacks them.
//!
//! All come from Debian 12 and its backports, whatever Debian this machine runs, so that a lab is
//! the same everywhere; the mirror is the one that this machine's apt uses.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use indicatif::ProgressBar;

use super::Own;

/// The Debian release that the labs are made of.
pub(crate) const RELEASE: &str = "bookworm";
/// Its newer kernel and QEMU.
pub(crate) const BACKPORTS: &str = "bookworm-backports";

/// A set of packages that is unpacked, with all it depends on, into one folder.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The folder's name below `target/lab`.
    pub(crate) name: &'static str,
    /// Debian's names for them.
    pub(crate) packages: &'static [&'static str],
    /// The release to prefer ([`BACKPORTS`]), if not the stable one.
    pub(crate) release: Option<&'static str>,
}

/// Where packages come from and go to.
#[derive(Debug)]
pub(crate) struct Packages {
    /// `target/lab`.
    pub(crate) folder: PathBuf,
    /// What takes the place of packages, and whether any may be fetched.
    pub(crate) own: Own,
}

/// A folder of unpacked packages: a root with `usr/bin`, `lib` and so on.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: PathBuf,
}

/// The file in a tree that names its packages, and tells that the tree is whole.
const LIST: &str = "packages.txt";

impl Packages {
    /// Unpacked packages; fetched first if they are not there yet.
    pub(crate) fn tree(&self, wanted: &Wanted) -> anyhow::Result<Tree> {
        let root = self.once(wanted.name, |apt, root| {
            apt.unpack(wanted.packages, wanted.release, root)
        })?;
        Ok(Tree { root })
    }

    /// The same without what they depend on.
    pub(crate) fn tree_alone(&self, name: &str, packages: &[&str]) -> anyhow::Result<Tree> {
        let root = self.once(name, |apt, root| {
            let mut list = Vec::new();
            for package in packages {
                list.extend(apt.unpack_alone(package, root)?);
            }
            Ok(list)
        })?;
        Ok(Tree { root })
    }

    /// A folder of packages, made by `make` unless it is there. `make` fills a folder beside it and
    /// returns the list of packages; only a whole one gets its name.
    pub(crate) fn once(
        &self,
        name: &str,
        make: impl FnOnce(&Apt<'_>, &Path) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<PathBuf> {
        let root = self.folder.join(name);
        if root.join(LIST).exists() {
            return Ok(root);
        }
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        let _lock = self.lock()?;
        // Who held the lock may have made it.
        if root.join(LIST).exists() {
            return Ok(root);
        }
        let making = || {
            let apt = Apt::new(self)?;
            let partial = self.folder.join(format!("{name}.partial"));
            emptied(&partial)?;
            let list = make(&apt, &partial)?;
            fs::write(partial.join(LIST), list.join("\n") + "\n")?;
            if root.exists() {
                fs::remove_dir_all(&root)?;
            }
            fs::rename(&partial, &root)?;
            anyhow::Ok(())
        };
        match making() {
            Ok(()) => Ok(root),
            Err(error) if name == "perf" => bail!("cannot fetch {name}: {error:#}"),
            Err(error) if name.starts_with("debian-") => bail!("cannot make a Debian: {error:#}"),
            Err(error) => bail!("cannot fetch {name} for the lab: {error:#}; {INSTEAD}"),
        }
    }

    /// Whether there is a folder of this name, whole.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.folder.join(name).join(LIST).exists()
    }

    /// Held while packages are fetched.
    fn lock(&self) -> anyhow::Result<File> {
        let path = self.folder.join("lock");
        let lock = || {
            let file = File::create(&path)?;
            file.lock()?;
            Ok::<_, std::io::Error>(file)
        };
        lock().with_context(|| format!("cannot lock {}", path.display()))
    }
}

/// What to do where there is no apt or no network.
const INSTEAD: &str = "without apt or a Debian mirror, name your own for the AMD lab: --qemu PROGRAM (10 or \
                       newer), --kernel-image FILE and --modules FOLDER, or in the environment \
                       EXITVISOR_QEMU, EXITVISOR_LAB_KERNEL and EXITVISOR_LAB_MODULES";

/// Makes a folder, and empties it.
fn emptied(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// apt with its own sources, lists and cache.
#[derive(Debug)]
pub(crate) struct Apt<'a> {
    packages: &'a Packages,
    configuration: PathBuf,
}

impl<'a> Apt<'a> {
    /// Asks the machine's apt for its mirror, and fetches the lists of packages from there.
    fn new(packages: &'a Packages) -> anyhow::Result<Self> {
        if packages.own.offline {
            bail!("it is not there and --offline forbids to fetch it");
        }
        let folder = packages.folder.join("apt");
        for sub in ["lists/partial", "archives/partial"] {
            let sub = folder.join(sub);
            fs::create_dir_all(&sub).with_context(|| format!("cannot make {}", sub.display()))?;
        }
        let apt = Self {
            packages,
            configuration: folder.join("apt.conf"),
        };
        let known = said(Command::new("apt-get").args([
            "indextargets",
            "--no-release-info",
            "--format",
            "$(RELEASE) $(COMPONENT) $(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let sources = sources(&known, &keyring())?;
        // An empty status: what is resolved does not depend on what this machine has installed.
        let list = folder.join("sources.list");
        let files = [
            (&list, sources),
            (&folder.join("status"), String::new()),
            (&apt.configuration, configuration(&folder)),
        ];
        for (path, text) in files {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        spinning("fetching lists of packages", || {
            said(apt.get(&["update", "-qq"]).arg("--error-on=any"))
        })?;
        Ok(apt)
    }

    /// Its sources, as in sources.list(5).
    pub(crate) fn sources(&self) -> anyhow::Result<String> {
        let list = self.packages.folder.join("apt/sources.list");
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))
    }

    fn get(&self, args: &[&str]) -> Command {
        self.command("apt-get", args)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command.arg("-c").arg(&self.configuration).args(args);
        command
    }

    /// The one package on which another one depends, by the beginning of its name.
    pub(crate) fn depends(&self, package: &str, prefix: &str) -> anyhow::Result<String> {
        let text = said(&mut self.command("apt-cache", &["depends", package]))?;
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        let mut names = names.filter(|name| name.starts_with(prefix));
        let name = names.next();
        let name = name.with_context(|| format!("{package} does not depend on {prefix}…"))?;
        Ok(name.to_owned())
    }

    /// Fetches packages with all they depend on and unpacks them; what they are.
    fn unpack(
        &self,
        packages: &[&str],
        release: Option<&str>,
        root: &Path,
    ) -> anyhow::Result<Vec<String>> {
        let mut command = self.get(&["install", "-qq", "--yes", "--download-only"]);
        if let Some(release) = release {
            command.args(["-t", release]);
        }
        command.args(packages);
        self.fetched(&mut command, packages, root)
    }

    /// Fetches one package and unpacks it; what it is.
    pub(crate) fn unpack_alone(&self, package: &str, root: &Path) -> anyhow::Result<Vec<String>> {
        let mut command = self.get(&["download", "-qq", package]);
        command.current_dir(self.archives()?);
        self.fetched(&mut command, &[package], root)
    }

    /// The folder to which apt fetches, emptied.
    fn archives(&self) -> anyhow::Result<PathBuf> {
        let archives = self.packages.folder.join("apt/archives");
        emptied(&archives.join("partial"))?;
        for file in archives.read_dir()? {
            let path = file?.path();
            if path.extension() == Some(OsStr::new("deb")) {
                fs::remove_file(path)?;
            }
        }
        Ok(archives)
    }

    fn fetched(
        &self,
        command: &mut Command,
        packages: &[&str],
        root: &Path,
    ) -> anyhow::Result<Vec<String>> {
        let archives = self.archives()?;
        spinning(&format!("fetching {}", packages.join(", ")), || {
            said(command)
        })?;
        let mut names = Vec::new();
        for file in archives.read_dir()? {
            let path = file?.path();
            if path.extension() != Some(OsStr::new("deb")) {
                continue;
            }
            said(Command::new("dpkg-deb").arg("-x").arg(&path).arg(root))?;
            fs::remove_file(&path)?;
            names.extend(
                path.file_stem()
                    .map(|name| name.to_string_lossy().into_owned()),
            );
        }
        for unneeded in ["doc", "info", "locale", "man"] {
            let folder = root.join("usr/share").join(unneeded);
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Runs a program to its end; what it wrote to stdout. Its complaint is the error.
pub(crate) fn said(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let line = why.lines().find(|line| line.starts_with("E: "));
        let line = line
            .or_else(|| why.lines().last())
            .unwrap_or("no reason given");
        bail!("{program}: {}", line.trim_start_matches("E: "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Does something that takes a while, with a spinner on a terminal.
pub(crate) fn spinning<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    spinner.set_message(what.to_owned());
    let result = work();
    spinner.finish_and_clear();
    result
}

/// The keys with which Debian signs, where its package puts them. `None`: apt's trusted ones.
fn keyring() -> Option<PathBuf> {
    let names = ["gpg", "pgp"];
    let mut paths = names
        .map(|suffix| {
            PathBuf::from(format!(
                "/usr/share/keyrings/debian-archive-keyring.{suffix}"
            ))
        })
        .into_iter();
    paths.find(|path| path.exists())
}

/// Our own sources, from what the machine's apt knows: lines of release, component, URI.
fn sources(known: &str, keyring: &Option<PathBuf>) -> anyhow::Result<String> {
    let entries: Vec<(&str, &str)> = known
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ' ');
            match (fields.next()?, fields.next()?, fields.next()?) {
                (release, "main", uri) => Some((release, uri)),
                _ => None,
            }
        })
        .collect();
    let named = |end: &str| {
        let of = |(release, uri): &&(&str, &str)| {
            let release = release
                .split_once(['-', '/'])
                .map_or(*release, |(name, _)| name);
            DEBIANS.contains(&release) && uri.trim_end_matches('/').ends_with(end)
        };
        entries.iter().find(of).map(|(_, uri)| *uri)
    };
    let Some(main) = named("debian") else {
        bail!("this machine's apt knows no Debian mirror");
    };
    let keys = keyring
        .as_ref()
        .map(|path| format!(" [signed-by={}]", path.display()));
    let keys = keys.unwrap_or_default();
    let mut text = String::new();
    for release in [RELEASE, "bookworm-updates", BACKPORTS] {
        text += &format!("deb{keys} {main} {release} main\n");
    }
    if let Some(security) = named("debian-security") {
        text += &format!("deb{keys} {security} bookworm-security main\n");
    }
    Ok(text)
}

/// Names by which a machine's own sources may call Debian's releases.
const DEBIANS: [&str; 10] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// apt's configuration: everything that it reads or writes lies in this folder, and nothing that
/// the machine hooks into its own apt is run.
fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear APT::Default-Release;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Debug::NoLocking "true";
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "{folder}";
Dir::State::Lists "{folder}/lists";
Dir::State::Status "{folder}/status";
Dir::Cache "{folder}";
Dir::Cache::Archives "{folder}/archives";
Dir::Cache::PkgCache "";
Dir::Cache::SrcPkgCache "";
Dir::Log "{folder}";
"#
    )
}

impl Tree {
    /// The version of one of its packages, as upstream numbers it.
    pub(crate) fn version(&self, package: &str) -> Option<String> {
        let list = fs::read_to_string(self.root.join(LIST)).ok()?;
        version(&list, package)
    }

    /// The path of a file in it, named as from its root without the slash: `usr/bin/bochs`.
    pub(crate) fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.root.join(file)
    }

    /// A program in it, or one elsewhere by its absolute path, run by its own dynamic loader with its own
    /// libraries, so that what the host has installed does not matter.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let libraries = ["lib", "usr/lib"].map(|lib| self.path(lib).join("x86_64-linux-gnu"));
        let mut command = Command::new(libraries[0].join("ld-linux-x86-64.so.2"));
        let libraries = libraries.map(|path| path.display().to_string());
        command.args(["--inhibit-cache", "--library-path", &libraries.join(":")]);
        command.arg(self.path(program));
        command
    }
}

/// From lines of `package_1%3a10.0.2+ds-2_amd64`: 10.0.2.
fn version(list: &str, package: &str) -> Option<String> {
    let mut lines = list.lines().filter_map(|line| line.split_once('_'));
    let (_, rest) = lines.find(|(name, _)| *name == package)?;
    let version = rest.split('_').next()?;
    let version = version
        .split_once("%3a")
        .map_or(version, |(_, version)| version);
    Some(version.split(['+', '-', '~']).next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let list = "busybox-static_1%3a1.35.0-4+b1_amd64\nbochs_2.7+dfsg-4_amd64\n";
        assert_eq!(version(list, "busybox-static").as_deref(), Some("1.35.0"));
        assert_eq!(version(list, "bochs").as_deref(), Some("2.7"));
        assert_eq!(version(list, "busybox"), None);
    }

    #[test]
    fn sources_follow_the_machines_own() {
        let known = "bookworm stable https://other.example/linux/debian/\n\
                     nodistro main https://node.example/debian\n\
                     trixie main http://mirror.example/debian/\n\
                     trixie-security main http://mirror.example/debian-security/\n";
        let keyring = Some(PathBuf::from("/keys.gpg"));
        assert_eq!(
            sources(known, &keyring).unwrap(),
            "deb [signed-by=/keys.gpg] http://mirror.example/debian/ bookworm main\n\
             deb [signed-by=/keys.gpg] http://mirror.example/debian/ bookworm-updates main\n\
             deb [signed-by=/keys.gpg] http://mirror.example/debian/ bookworm-backports main\n\
             deb [signed-by=/keys.gpg] http://mirror.example/debian-security/ bookworm-security main\n"
        );
        let only = sources("stable main file:/srv/debian", &None).unwrap();
        assert_eq!(only.lines().count(), 3);
        assert!(only.starts_with("deb file:/srv/debian bookworm main\n"));
    }

    #[test]
    fn a_machine_without_debian_is_told() {
        for known in [
            "",
            "noble main http://mirror.example/ubuntu/\n",
            "bookworm main",
        ] {
            let error = sources(known, &None).unwrap_err().to_string();
            assert_eq!(error, "this machine's apt knows no Debian mirror");
        }
    }

    #[test]
    fn nothing_outside_the_folder_is_written() {
        let text = configuration(Path::new("/x/lab/apt"));
        let quoted = text.lines().filter(|line| line.starts_with("Dir::"));
        for line in quoted {
            let own = ["\"/x/lab/apt", "\"/dev/null\"", "\"\""];
            assert!(own.iter().any(|path| line.contains(path)), "{line}");
        }
    }
}
