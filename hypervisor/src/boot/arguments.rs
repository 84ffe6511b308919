//! What Linux is told on its command line because there is no other way to tell it: which of a PC's
//! devices this machine has not.

use crate::devices::serial::Registers;
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
        "8250.nr_uarts=1",
        "COM1 is the only serial port; without this Linux looks for COM2 to COM4",
    ),
];

/// The command line of a Linux: the user's, with the arguments before it that the user has not.
/// Where COM1 is a page, the console on it is named by its address, by which Linux has it from the first
/// line on; what follows a comma (`console=ttyS0,115200`) stays. As it is where there is no room.
pub fn with(cmdline: &str, com1: Registers) -> String {
    let name = |argument: &str| argument.split('=').next().map(str::to_owned);
    // What follows `--` is for init.
    let words = || cmdline.split_whitespace().take_while(|word| *word != "--");
    let missing = ARGUMENTS
        .iter()
        .map(|(argument, _)| (*argument).to_owned())
        .filter(|argument| !words().any(|word| name(word) == name(argument)));
    let mut whole: Vec<String> = missing.collect();
    match com1 {
        Registers::Ports => whole.extend((!cmdline.is_empty()).then(|| cmdline.to_owned())),
        Registers::Page => whole.extend(with_page(cmdline)),
    }
    let whole = whole.join(" ");
    match whole.len() < layout::CMDLINE_SIZE {
        true => whole,
        false => cmdline.to_owned(),
    }
}

/// The words of a command line whose console is COM1's page.
fn with_page(cmdline: &str) -> Vec<String> {
    // By the blank: what is quoted stays as it is.
    let words: Vec<&str> = cmdline.split(' ').filter(|word| !word.is_empty()).collect();
    let end = words.iter().position(|word| *word == "--");
    let (words, for_init) = words.split_at(end.unwrap_or(words.len()));
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

/// A word of the command line; the console COM1 becomes the console on COM1's page
/// (linux/Documentation/admin-guide/kernel-parameters.txt, `console=`).
fn page_console(word: &str) -> String {
    let options = word
        .strip_prefix("console=ttyS0")
        .filter(|options| options.is_empty() || options.starts_with(','));
    match options {
        Some(options) => format!("{PAGE_CONSOLE}{:#x}{options}", layout::STATUS_PAGE),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_has_the_last_word() {
        let with = |cmdline| with(cmdline, Registers::Ports);
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
    fn the_console_on_a_page_is_named_by_its_address() {
        let with = |cmdline| {
            let all = with(cmdline, Registers::Page);
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
