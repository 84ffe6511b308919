//! What `devices` prints: the machine as the kernel knows it.

use crate::line::Line;
use crate::machine::{Machine, Switch};

/// Hands the lines to `emit`, without their newlines.
pub fn devices(machine: &Machine, mut emit: impl FnMut(&mut Line)) {
    let mut line = Line::new();
    if !machine.described {
        line.text("devices: no device tree: the interface's constants are used");
        return emit(&mut line);
    }
    let ram = machine.ram.as_slice();
    let bytes = ram.iter().fold(0_u64, |sum, r| sum.saturating_add(r.1));
    line.text("devices: RAM ").number(bytes >> 20);
    line.text(" MiB in ").number(ram.len() as u64);
    line.text(" ranges, ")
        .number(machine.cpus.as_slice().len() as u64);
    line.text(" CPUs, timer ").number(machine.timer.into());
    line.text(" Hz");
    emit(&mut line);
    line = Line::new();
    page(&mut line, "devices: local APIC ", machine.local_apic);
    page(&mut line, ", IOAPIC ", machine.io_apic);
    page(&mut line, ", scratch page ", machine.scratch_page);
    if let Some((start, _)) = machine.exit_page {
        page(&mut line, ", exit page ", start);
    }
    emit(&mut line);
    let ports = &machine.ports;
    line = Line::new();
    port(&mut line, "devices: serial port ", ports.serial);
    port(&mut line, ", milestones ", ports.milestone);
    port(&mut line, ", exit ", ports.exit);
    port(&mut line, ", scratch ", ports.scratch);
    port(&mut line, ", gates ", ports.gate[0]);
    port(&mut line, " ", ports.gate[1]);
    port(&mut line, " ", ports.gate[2]);
    line.text(" (").number(machine.slots.into()).text(" slots)");
    emit(&mut line);
    line = Line::new();
    switch(&mut line, "devices: power-off ", machine.power_off);
    switch(&mut line, ", reset ", machine.reset);
    match machine.resets {
        Some(count) => line.text(", resets so far ").number(count.into()),
        None => line.text(", resets so far unknown"),
    };
    emit(&mut line);
}

fn page(line: &mut Line, name: &str, address: u64) {
    line.text(name).text("0x");
    if address >> 32 != 0 {
        line.hex32((address >> 32) as u32);
    }
    line.hex32(address as u32);
}

fn port(line: &mut Line, name: &str, port: u16) {
    line.text(name).text("0x").hex16(port);
}

fn switch(line: &mut Line, name: &str, switch: Switch) {
    port(line, name, switch.port);
    line.text(" = ").number(switch.value.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(machine: &Machine) -> Vec<String> {
        let mut lines = Vec::new();
        devices(machine, |l| {
            lines.push(String::from_utf8(l.as_bytes().to_vec()).unwrap());
        });
        lines
    }

    #[test]
    fn one_line_where_nothing_is_described() {
        assert_eq!(
            lines(&Machine::undescribed()),
            ["devices: no device tree: the interface's constants are used"]
        );
    }

    #[test]
    fn everything_that_is_known() {
        let mut machine = Machine::undescribed();
        machine.described = true;
        machine.ram.push((0, 64 << 20)).unwrap();
        machine.cpus.push(0).unwrap();
        machine.exit_page = Some((0xD100_0000, 0x5000));
        assert_eq!(
            lines(&machine),
            [
                "devices: RAM 64 MiB in 1 ranges, 1 CPUs, timer 1000000000 Hz",
                "devices: local APIC 0xFEE00000, IOAPIC 0xFEC00000, scratch page 0xD0000000, \
                 exit page 0xD1000000",
                "devices: serial port 0x03F8, milestones 0x0E00, exit 0x0E08, scratch 0x0E1C, \
                 gates 0x0E10 0x0E14 0x0E18 (4 slots)",
                "devices: power-off 0x0E20 = 52, reset 0x0E22 = 165, resets so far unknown",
            ]
        );
    }
}
