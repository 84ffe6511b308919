//! The log: readings, one after the other, printed as they are taken.

use std::io::Write;
use std::time::Instant;

use exit_abi::milestone::FIRST_OWN;
use guest_kernel::exit_log::both;
use guest_kernel::exit_log::discovery::{Found, discover};
use guest_kernel::exit_log::reading::Reading;
use guest_kernel::line::Line;

use crate::cli::From;
use crate::error::Error;
use crate::gate;
use crate::page::{ExitPage, NoPage};
use crate::ports::{Ports, pinned};
use crate::record::Record;
use crate::site::{Site, plain_cpuid};
use crate::text;

/// The first number of the milestones that are told by exitlog.
pub(crate) const FIRST_MILESTONE: u32 = FIRST_OWN + 0x100;

/// How readings are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The coursework's line.
    Line,
    /// And a table by reason.
    Table,
    /// A line of JSON.
    Json,
    /// Not yet: printing costs exits.
    Later,
}

/// What a reading is taken at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    /// The n-th of repeated queries.
    Query(u32),
    /// A step of the boot: its number among those that exitlog tells, and its name.
    Step(u32, &'static str),
}

/// The log.
pub(crate) struct Log {
    form: Form,
    from: From,
    found: Found,
    ports: Ports,
    site: Site,
    page: Option<ExitPage>,
    /// Why there is none, as it was said.
    no_page: Option<String>,
    begun: Instant,
    /// The reading before, and the first of all.
    before: Reading,
    first: Option<Reading>,
    /// Lines that are shown later.
    later: String,
    /// Readings in which page and leaves agreed.
    agreed: u32,
}

impl Log {
    /// Looks for Exitvisor, and gets ready to ask it.
    pub(crate) fn open(from: From, form: Form) -> Result<Self, Error> {
        let found = discover(plain_cpuid, None).map_err(Error::Absent)?;
        let ports = Ports::open()?;
        Ok(Self {
            form,
            from,
            found,
            ports,
            site: Site::map()?,
            page: None,
            no_page: None,
            begun: Instant::now(),
            before: Reading::new(),
            first: None,
            later: String::new(),
            agreed: 0,
        })
    }

    /// Shows readings in this form from now on, and what was to be shown later: the lines, and
    /// unless they are enough a table of the last reading beside the first.
    pub(crate) fn show(&mut self, form: Form) -> Result<(), Error> {
        self.form = form;
        let mut text = std::mem::take(&mut self.later);
        if let (Form::Table, Some(first)) = (form, &self.first) {
            let leaf = self.found.layout.total_exits;
            let since = Record::new(String::new(), "", leaf, 0, &self.before, first);
            text += &text::rows(&since);
        }
        print(&text)
    }

    /// Maps the exit page, if it is wanted and not there yet: init has no /dev/mem at first.
    fn open_page(&mut self) -> Result<(), Error> {
        if self.page.is_some() || self.from == From::Leaves {
            return Ok(());
        }
        // What mapping costs is not the profiler's own: Linux may have to wait for memory.
        match ExitPage::open(self.found.page) {
            Ok(page) => {
                pinned(|| {
                    self.ports.own(|| page.touch());
                    Ok(())
                })?;
                self.page = Some(page);
                self.no_page = None;
                Ok(())
            }
            Err(NoPage::None) if self.from == From::Auto => Ok(()),
            Err(why) if self.from == From::Auto => {
                self.no_page = Some(why.to_string());
                Ok(())
            }
            Err(why) => Err(Error::Page(why)),
        }
    }

    /// Takes a reading, and prints it. A milestone is told to Exitvisor just before.
    pub(crate) fn take(&mut self, label: Label, milestone: Option<&str>) -> Result<(), Error> {
        self.open_page()?;
        let (number, label) = match label {
            Label::Query(n) => (FIRST_MILESTONE, format!("query {n}")),
            Label::Step(n, name) => (FIRST_MILESTONE + n, name.to_owned()),
        };
        if let Some(name) = milestone {
            pinned(|| {
                self.ports.milestone(number, name);
                Ok(())
            })?;
        }
        let layout = self.found.layout;
        let ask = || {
            gate::with(&self.ports, &self.site, layout, |cpuid| {
                let mut reading = Reading::new();
                reading.ask(layout, cpuid);
                reading
            })
        };
        let (now, source) = match &self.page {
            Some(page) if self.from == From::Page => (page.read(), "page"),
            Some(page) => {
                let first = page.read();
                let now = ask()?;
                let last = page.read();
                both::compare(page.head(), &first, &now, &last).map_err(|wrong| {
                    let mut line = Line::new();
                    wrong.describe(&mut line);
                    Error::Contradiction(String::from_utf8_lossy(line.as_bytes()).into_owned())
                })?;
                self.agreed += 1;
                (now, "leaves and page")
            }
            None => (ask()?, "leaves"),
        };
        let nanos = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let record = Record::new(label, source, layout.total_exits, nanos, &now, &self.before);
        self.first.get_or_insert_with(|| now.clone());
        self.before = now;
        let text = match self.form {
            Form::Later => {
                self.later += &text::line(&record);
                return Ok(());
            }
            Form::Line => text::line(&record),
            Form::Table => text::table(&record),
            // Cannot fail: its keys are strings.
            Form::Json => serde_json::to_string(&record).unwrap_or_default() + "\n",
        };
        print(&text)
    }

    /// Says what is to be said at the end.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        let text = match (&self.no_page, self.agreed) {
            _ if self.form == Form::Json => return Ok(()),
            (Some(why), _) => format!("[exit-log] by the leaves alone: {why}\n"),
            (None, 0) => return Ok(()),
            (None, n) => format!("[exit-log] exit page and leaves agree in {n} records\n"),
        };
        print(&text)
    }
}

/// Prints with one write, so that lines of others stand between records alone.
fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(Error::Print)
}
