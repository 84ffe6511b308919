//! A walk through a guest's page tables, for addresses that KVM does not translate: KVM_TRANSLATE
//! looks as a supervisor does, and where the guest has SMAP on it finds no page of user space.

/// Present (SDM vol. 3A, 5.5.4, tables 5-15 to 5-20).
const PRESENT: u64 = 1 << 0;
/// It maps a page, not another table.
const PAGE_SIZE: u64 = 1 << 7;
/// Where a table or page lies: bits 51:12.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// The physical address of a linear one, by 4-level paging; `None` if it is not mapped. `cr3` is the
/// register; `entry` reads the table entry at a physical address, if memory is there. Whether
/// an access would be allowed is not asked.
pub fn four_levels(cr3: u64, linear: u64, entry: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    let mut table = cr3 & ADDRESS;
    for shift in [39, 30, 21, 12] {
        let found = entry(table + (linear >> shift & 0x1FF) * 8)?;
        if found & PRESENT == 0 {
            return None;
        }
        let is_page = shift == 12 || shift < 39 && found & PAGE_SIZE != 0;
        if is_page {
            let within = (1 << shift) - 1;
            return Some(found & ADDRESS & !within | linear & within);
        }
        table = found & ADDRESS;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn tables() -> BTreeMap<u64, u64> {
        let table = |at: u64, index: u64, value| (at + index * 8, value);
        BTreeMap::from([
            table(0x1000, 0x9F, 0x2007),
            table(0x2000, 0x1FF, 0x3007),
            table(0x2000, 0, 0xC000_0087),
            table(0x3000, 0x1FF, 0x8000_0000_0000_4005),
            table(0x3000, 0, 0x0040_1087),
            table(0x4000, 0x1FF, 0x8000_0000_1234_5025),
            table(0x4000, 0, 0x5000),
        ])
    }

    fn walk(linear: u64) -> Option<u64> {
        let tables = tables();
        // CR3 with a PCID.
        four_levels(0x1004, linear, |at| tables.get(&at).copied())
    }

    #[test]
    fn pages_of_each_size() {
        assert_eq!(walk(0x4FFF_FFFF_F008), Some(0x1234_5008));
        // Bits that a large page must not have are not part of its address.
        assert_eq!(walk(0x4FFF_C012_3456), Some(0x0052_3456));
        assert_eq!(walk(0x4F80_1234_5678), Some(0xD234_5678));
        assert_eq!(walk(0x4FFF_FFE0_0000), None, "not present");
        assert_eq!(walk(0), None, "no memory there");
    }

    proptest! {
        #[test]
        fn any_tables_are_walked(cr3: u64, linear: u64, entries: [u64; 4]) {
            let walked = four_levels(cr3, linear, |at| Some(entries[at as usize / 8 % 4]));
            prop_assert!(walked.is_none_or(|found| found < 1 << 52));
        }
    }
}
