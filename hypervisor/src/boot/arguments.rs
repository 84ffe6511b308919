//! What Linux is told on its command line because there is no other way to tell it: which of a PC's
//! devices this machine has not.

use crate::layout;

/// Arguments, and why. Each stands before the user's, who has the last word, and is left out where
/// the user speaks of it. Prose: `docs/linux.md`, which a test holds against this.
pub const ARGUMENTS: &[(&str, &str)] = &[
    (
        "pci=off",
        "there is no PCI; without this Linux looks for 32 devices by the ports of PCI, and complains",
    ),
    (
        "8250.nr_uarts=1",
        "COM1 is the only serial port; without this Linux looks for COM2 to COM4",
    ),
];

/// The command line of a Linux: the user's, with the arguments before it that the user has not.
/// As it is where there is no room.
pub fn with(cmdline: &str) -> String {
    // What follows `--` is for init.
    let words = || cmdline.split_whitespace().take_while(|word| *word != "--");
    let name = |argument: &str| argument.split('=').next().map(str::to_owned);
    let missing = ARGUMENTS
        .iter()
        .map(|(argument, _)| *argument)
        .filter(|argument| !words().any(|word| name(word) == name(argument)));
    let whole: Vec<&str> = missing
        .chain((!cmdline.is_empty()).then_some(cmdline))
        .collect();
    let whole = whole.join(" ");
    match whole.len() < layout::CMDLINE_SIZE {
        true => whole,
        false => cmdline.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_has_the_last_word() {
        assert_eq!(with(""), "pci=off 8250.nr_uarts=1");
        assert_eq!(
            with("quiet -- pci=conf1"),
            "pci=off 8250.nr_uarts=1 quiet -- pci=conf1"
        );
        assert_eq!(with("pci=conf1 quiet"), "8250.nr_uarts=1 pci=conf1 quiet");
        assert_eq!(with("8250.nr_uarts=4 pci=off"), "8250.nr_uarts=4 pci=off");
        let long = "x".repeat(layout::CMDLINE_SIZE - 5);
        assert_eq!(with(&long), long);
    }
}
