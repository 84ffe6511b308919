//! Exitvisor's own ports, as one vCPU sees them: milestones, exit status, gates, own sections.
//!
//! State is per vCPU, so that two that write at once cannot mix their halves of an address.

use exit_abi::gate::Outcome;
use exit_abi::port;

use crate::exits::milestone::Name;

/// What a write to a port asks of the vCPU loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing.
    None,
    /// Take a snapshot.
    Milestone {
        /// Its number.
        number: u32,
        /// The name that the guest spelled before.
        name: Name,
    },
    /// End the VM with the guest's status.
    Exit(u32),
    /// A section of the profiler's own begins (true) or ends.
    OwnSection(bool),
    /// Carry out a gate command.
    Gate {
        /// The command.
        number: u32,
        /// The address it is about.
        address: u64,
    },
}

/// The ports' state for one vCPU.
#[derive(Debug)]
pub struct Ports {
    name: Name,
    low: u32,
    high: u32,
    /// How the last gate command ended.
    pub outcome: Outcome,
    /// Exits are the profiler's own until the guest says otherwise.
    pub own_section: bool,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            name: Name::default(),
            low: 0,
            high: 0,
            outcome: Outcome::None,
            own_section: false,
        }
    }
}

/// The little-endian number in up to four bytes.
fn number(data: &[u8]) -> u32 {
    data.iter()
        .take(4)
        .rev()
        .fold(0, |n, &b| n << 8 | u32::from(b))
}

impl Ports {
    /// Whether accesses to this port are the profiler's own business: all of ours but the scratch
    /// port, which is there for a guest's workloads.
    pub fn is_own(port: u16) -> bool {
        (port::BASE..port::SCRATCH).contains(&port)
    }

    /// One access of one width. An access that starts inside a port's four bytes is not its own.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Request {
        let value = number(data);
        match port {
            port::MILESTONE => {
                return Request::Milestone {
                    number: value,
                    name: self.name.take(),
                };
            }
            port::MILESTONE_NAME => data.iter().for_each(|&b| self.name.push(b)),
            port::EXIT => return Request::Exit(value),
            port::OWN_SECTION => return Request::OwnSection(value & 1 != 0),
            port::GATE_LOW => self.low = value,
            port::GATE_HIGH => self.high = value,
            port::GATE_COMMAND => {
                let address = u64::from(self.high) << 32 | u64::from(self.low);
                return Request::Gate {
                    number: value,
                    address,
                };
            }
            _ => {}
        }
        Request::None
    }

    /// One read of one width: the last gate command's outcome, or zeros.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let value = if port == port::GATE_COMMAND {
            self.outcome as u32
        } else {
            0
        };
        let bytes = value.to_le_bytes();
        for (to, from) in data
            .iter_mut()
            .zip(bytes.iter().chain(std::iter::repeat(&0)))
        {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milestones_take_the_name_spelled_before() {
        let mut ports = Ports::default();
        assert_eq!(ports.write(port::MILESTONE_NAME, b"init"), Request::None);
        let Request::Milestone { number, name } = ports.write(port::MILESTONE, &[0, 1, 0, 0])
        else {
            panic!("no milestone");
        };
        assert_eq!((number, name.as_str()), (0x100, Some("init")));
        let Request::Milestone { name, .. } = ports.write(port::MILESTONE, &[1]) else {
            panic!("no milestone");
        };
        assert_eq!(name.as_str(), None);
    }

    #[test]
    fn gate_commands_carry_the_whole_address() {
        let mut ports = Ports::default();
        ports.write(port::GATE_LOW, &0x8000_0010_u32.to_le_bytes());
        ports.write(port::GATE_HIGH, &0xFFFF_FFFF_u32.to_le_bytes());
        let request = ports.write(port::GATE_COMMAND, &[1, 0, 0, 0]);
        assert_eq!(
            request,
            Request::Gate {
                number: 1,
                address: 0xFFFF_FFFF_8000_0010
            }
        );
        let mut answer = [0xAA; 4];
        ports.read(port::GATE_COMMAND, &mut answer);
        assert_eq!(answer, [Outcome::None as u8, 0, 0, 0]);
    }

    #[test]
    fn odd_widths_and_offsets_do_nothing() {
        let mut ports = Ports::default();
        assert_eq!(ports.write(port::GATE_COMMAND + 1, &[1]), Request::None);
        assert_eq!(ports.write(port::SCRATCH, &[1, 2]), Request::None);
        assert_eq!(ports.write(port::EXIT, &[]), Request::Exit(0));
        let mut wide = [0xAA; 9];
        ports.read(port::GATE_COMMAND, &mut wide);
        assert_eq!(wide, [7, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_scratch_port_is_the_guests_business() {
        for (port, own) in [
            (port::MILESTONE, true),
            (port::MILESTONE_NAME, true),
            (port::EXIT, true),
            (port::OWN_SECTION, true),
            (port::GATE_COMMAND, true),
            (port::SCRATCH, false),
            (port::COM1, false),
        ] {
            assert_eq!(Ports::is_own(port), own, "{port:#x}");
        }
    }
}
