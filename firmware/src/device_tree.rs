//! The device tree: where the machine's ports are. Without one they are where Exitvisor has always
//! had them.

use exit_abi::leaf::Layout;
use guest_kernel::machine::{Machine, tree};

use crate::error::Error;

/// Reads a device tree, lets all that speaks to Exitvisor use its ports, and answers which leaves it
/// names.
pub fn take_into_use(module: &[u8]) -> Result<Option<Layout>, Error> {
    let machine = read(module)?;
    machine.take_into_use();
    Ok(machine.layout)
}

fn read(module: &[u8]) -> Result<Machine, Error> {
    let bytes = module.len() as u64;
    if bytes > tree::SIZE_MAX {
        return Err(Error::TreeSize(bytes));
    }
    let mut machine = Machine::undescribed();
    tree::read(module, &mut machine).map_err(Error::Tree)?;
    Ok(machine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use exit_abi::devicetree as names;
    use proptest::prelude::*;
    use vm_fdt::FdtWriter;

    /// A tree with this port for milestones.
    fn tree_with(milestone: u32) -> Vec<u8> {
        let write = || -> Result<Vec<u8>, vm_fdt::Error> {
            let mut fdt = FdtWriter::new()?;
            let root = fdt.begin_node("")?;
            fdt.property_string("compatible", names::MACHINE)?;
            let isa = fdt.begin_node("isa")?;
            fdt.property_string("compatible", "isa")?;
            let ports = fdt.begin_node("ports")?;
            fdt.property_string("compatible", names::PORTS)?;
            fdt.property_u32(names::MILESTONE_PORT, milestone)?;
            fdt.end_node(ports)?;
            fdt.end_node(isa)?;
            fdt.end_node(root)?;
            fdt.finish()
        };
        write().unwrap()
    }

    #[test]
    fn ports_come_from_the_tree() {
        let machine = read(&tree_with(0x500)).unwrap();
        assert_eq!(machine.ports.milestone, 0x500);
        assert_eq!(machine.ports.exit, exit_abi::port::EXIT);
    }

    #[test]
    fn trees_that_make_no_sense() {
        let good = tree_with(0x500);
        for length in 0..good.len() {
            assert!(matches!(read(&good[..length]), Err(Error::Tree(_))));
        }
        let wide = read(&tree_with(1 << 16));
        assert!(matches!(wide, Err(Error::Tree(tree::Error::Value(_)))));
        let huge = vec![0; tree::SIZE_MAX as usize + 1];
        assert!(matches!(read(&huge), Err(Error::TreeSize(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(flips in prop::collection::vec((0_usize..1000, any::<u8>()), 1..8)) {
            let mut tree = tree_with(0x500);
            for (at, byte) in flips {
                let length = tree.len();
                tree[at % length] = byte;
            }
            let _ = read(&tree);
        }
    }
}
