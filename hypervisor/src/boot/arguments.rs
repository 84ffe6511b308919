//! What Linux is told on its command line because there is no other way to tell it: which of a PC's
//! devices this machine has not.

use crate::devices::serial::Registers;
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
        Registers::Page => {
            if !words().any(|word| name(word).as_deref() == Some("console")) {
                whole.push(page_console(""));
            }
            let mut for_linux = true;
            // By the blank: what is quoted stays as it is.
            let all = (!cmdline.is_empty()).then(|| cmdline.split(' '));
            whole.extend(all.into_iter().flatten().map(|word| {
                for_linux &= word != "--";
                let rest = word.strip_prefix("console=ttyS0").filter(|_| for_linux);
                let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with(','));
                rest.map_or_else(|| word.to_owned(), page_console)
            }));
        }
    }
    let whole = whole.join(" ");
    match whole.len() < layout::CMDLINE_SIZE {
        true => whole,
        false => cmdline.to_owned(),
    }
}

/// The console on COM1's page (linux/Documentation/admin-guide/kernel-parameters.txt, `console=`).
fn page_console(options: &str) -> String {
    format!("console=uart8250,mmio,{:#x}{options}", layout::STATUS_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_has_the_last_word() {
        let with = |cmdline| with(cmdline, Registers::Ports);
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

    #[test]
    fn the_console_on_a_page_is_named_by_its_address() {
        let with = |cmdline| {
            let all = with(cmdline, Registers::Page);
            let own = all.strip_prefix("pci=off 8250.nr_uarts=1 ").unwrap();
            own.replace("uart8250,mmio,0xd1400000", "PAGE")
        };
        assert_eq!(with(""), "console=PAGE");
        assert_eq!(with("quiet -- x"), "console=PAGE quiet -- x");
        assert_eq!(with("console=tty0 a"), "console=tty0 a");
        assert_eq!(with("console=ttyS0 a"), "console=PAGE a");
        assert_eq!(with("console=ttyS0,115200n8"), "console=PAGE,115200n8");
        assert_eq!(with("console=ttyS01 b"), "console=ttyS01 b");
        assert_eq!(
            with("console=ttyS0 -- console=ttyS0"),
            "console=PAGE -- console=ttyS0"
        );
    }
}
