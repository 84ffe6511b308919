//! What Linux is told on its command line because there is no other way to tell it: which of a PC's
//! devices this machine has not.

use crate::devices::console::Way;
use crate::layout;

/// The console on COM1's page, before its address.
const PAGE_CONSOLE: &str = "console=uart8250,mmio,";

/// What says that PCI has but the address register of its mechanism 1 ([`crate::devices::pci`]).
const EMPTY_BUS: &str = "pci=conf1,noearly";

/// Whether a Linux with this command line is told of an empty PCI bus.
pub fn has_empty_bus(cmdline: &str) -> bool {
    cmdline
        .split_whitespace()
        .take_while(|word| *word != "--")
        .any(|word| word == EMPTY_BUS)
}

/// Arguments, and why. Each stands before the user's, who has the last word, and is left out where
/// the user speaks of it. Prose: `docs/linux.md`, which a test holds against this.
pub const ARGUMENTS: &[(&str, &str)] = &[
    (
        EMPTY_BUS,
        "an empty bus: without this Linux looks for 32 devices by the ports of PCI, and complains; with \
         `pci=off` it only complains, `quiet` or not, at 138 exits",
    ),
    (
        ONE_UART,
        "COM1 is the only serial port; without this Linux looks for COM2 to COM4",
    ),
    (
        NO_UART,
        "with `--console virtio`, in place of the one above: COM1 only prints what comes before the \
         device's driver (`earlyprintk=ttyS0`); without this Linux looks for it, and finds it",
    ),
];

/// What says that there is no UART to drive.
const NO_UART: &str = "8250.nr_uarts=0";
/// What says that there is one.
const ONE_UART: &str = "8250.nr_uarts=1";

/// The command line of a Linux: the user's, with the arguments before it that the user has not.
/// Where COM1 is a page, the console on it is named by its address, by which Linux has it from the first
/// line on; what follows a comma (`console=ttyS0,115200`) stays. Where it is a virtio device, it is called
/// hvc0. As it is where there is no room.
pub fn with(cmdline: &str, way: Way) -> String {
    let name = |argument: &str| argument.split('=').next().map(str::to_owned);
    // What follows `--` is for init.
    let words = || cmdline.split_whitespace().take_while(|word| *word != "--");
    let other = match way {
        Way::Virtio => ONE_UART,
        Way::Ports | Way::Page => NO_UART,
    };
    let missing = ARGUMENTS
        .iter()
        .filter(|(argument, _)| *argument != other)
        .map(|(argument, _)| (*argument).to_owned())
        .filter(|argument| !words().any(|word| name(word) == name(argument)));
    let mut whole: Vec<String> = missing.collect();
    match way {
        Way::Ports => whole.extend((!cmdline.is_empty()).then(|| cmdline.to_owned())),
        Way::Page => whole.extend(with_page(cmdline)),
        Way::Virtio => whole.extend(with_virtio(cmdline)),
    }
    let whole = whole.join(" ");
    match whole.len() < layout::CMDLINE_SIZE {
        true => whole,
        false => cmdline.to_owned(),
    }
}

/// The words of a command line, the kernel's and, from `--` on, those for init.
fn words(cmdline: &str) -> (Vec<&str>, Vec<&str>) {
    // By the blank: what is quoted stays as it is.
    let mut words: Vec<&str> = cmdline.split(' ').filter(|word| !word.is_empty()).collect();
    let end = words.iter().position(|word| *word == "--");
    let for_init = words.split_off(end.unwrap_or(words.len()));
    (words, for_init)
}

/// The words of a command line whose console is a virtio device.
fn with_virtio(cmdline: &str) -> Vec<String> {
    const HVC0: &str = "console=hvc0";
    let (words, for_init) = words(cmdline);
    let is_named = words.iter().any(|word| word.starts_with("console="));
    let words = words.into_iter().map(|word| match com1_options(word) {
        // They are a UART's: its speed.
        Some(_) => HVC0,
        None => word,
    });
    let added = (!is_named).then_some(HVC0);
    let all = words.chain(added).chain(for_init);
    all.map(str::to_owned).collect()
}

/// The words of a command line whose console is COM1's page.
fn with_page(cmdline: &str) -> Vec<String> {
    let (words, for_init) = words(cmdline);
    let mut words: Vec<String> = words.iter().map(|word| page_console(word)).collect();
    // Linux prints there as soon as it has read this word: what it has read of `quiet` must come before
    // it. The last console is `/dev/console`, so that no other is passed by.
    match words.iter().rposition(|word| word.starts_with("console=")) {
        None => words.push(page_console("console=ttyS0")),
        Some(last) if words[last].starts_with(PAGE_CONSOLE) => {
            let last = words.remove(last);
            words.push(last);
        }
        Some(_) => {}
    }
    words.extend(for_init.iter().map(|word| (*word).to_owned()));
    words
}

/// What follows the name of COM1 in a word that makes it a console.
fn com1_options(word: &str) -> Option<&str> {
    word.strip_prefix("console=ttyS0")
        .filter(|options| options.is_empty() || options.starts_with(','))
}

/// A word of the command line; the console COM1 becomes the console on COM1's page
/// (linux/Documentation/admin-guide/kernel-parameters.txt, `console=`).
fn page_console(word: &str) -> String {
    match com1_options(word) {
        Some(options) => format!("{PAGE_CONSOLE}{:#x}{options}", layout::STATUS_PAGE),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_has_the_last_word() {
        let with = |cmdline| with(cmdline, Way::Ports);
        assert_eq!(with(""), "pci=conf1,noearly 8250.nr_uarts=1");
        assert_eq!(
            with("quiet -- pci=conf1"),
            "pci=conf1,noearly 8250.nr_uarts=1 quiet -- pci=conf1"
        );
        assert_eq!(with("pci=conf1 quiet"), "8250.nr_uarts=1 pci=conf1 quiet");
        assert_eq!(with("8250.nr_uarts=4 pci=off"), "8250.nr_uarts=4 pci=off");
        assert!(has_empty_bus(&with("")) && !has_empty_bus(&with("pci=off")));
        let long = "x".repeat(layout::CMDLINE_SIZE - 5);
        assert_eq!(with(&long), long);
    }

    #[test]
    fn the_virtio_console_is_hvc0() {
        let with = |cmdline| {
            let all = with(cmdline, Way::Virtio);
            let own = all.strip_prefix("pci=conf1,noearly 8250.nr_uarts=0 ");
            own.unwrap().to_owned()
        };
        for (given, told) in [
            ("", "console=hvc0"),
            ("quiet -- x", "quiet console=hvc0 -- x"),
            ("console=ttyS0,115200 quiet", "console=hvc0 quiet"),
            ("console=tty0 a", "console=tty0 a"),
            ("console=hvc0 a", "console=hvc0 a"),
            ("console=ttyS01", "console=ttyS01"),
            (
                "console=tty0  console=ttyS0 -- console=ttyS0",
                "console=tty0 console=hvc0 -- console=ttyS0",
            ),
        ] {
            assert_eq!(with(given), told, "{given}");
        }
        let own = super::with("8250.nr_uarts=4", Way::Virtio);
        assert_eq!(own, "pci=conf1,noearly 8250.nr_uarts=4 console=hvc0");
    }

    #[test]
    fn the_console_on_a_page_is_named_by_its_address() {
        let with = |cmdline| {
            let all = with(cmdline, Way::Page);
            let own = all
                .strip_prefix("pci=conf1,noearly 8250.nr_uarts=1 ")
                .unwrap();
            own.replace("uart8250,mmio,0xd1400000", "PAGE")
        };
        for (given, told) in [
            ("", "console=PAGE"),
            ("quiet -- x", "quiet console=PAGE -- x"),
            ("console=tty0 a", "console=tty0 a"),
            ("console=ttyS0 a quiet", "a quiet console=PAGE"),
            ("console=ttyS0,115200n8", "console=PAGE,115200n8"),
            ("console=ttyS01 b", "console=ttyS01 b"),
            (
                "console=ttyS0 console=tty0 b",
                "console=PAGE console=tty0 b",
            ),
            (
                "console=tty0 console=ttyS0 b",
                "console=tty0 b console=PAGE",
            ),
            (
                "console=ttyS0 -- console=ttyS0",
                "console=PAGE -- console=ttyS0",
            ),
        ] {
            assert_eq!(with(given), told, "{given}");
        }
    }
}
