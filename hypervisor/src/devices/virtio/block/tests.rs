//! The block device's own tests: what a driver asks of it, and what one would not ask.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::rig::{BUFFERS, Descriptor, INDIRECT, MEMORY, NEXT, Rig, SIZE, WRITE};
use super::*;

const SECTORS: u64 = 64;

struct Bench {
    rig: Rig,
    file: File,
    _folder: tempfile::TempDir,
}

fn wish(path: PathBuf) -> Wish {
    Wish {
        path,
        read_only: false,
        serial: "a-disk".into(),
    }
}

fn bench(read_only: bool, features: u64) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let mut file = File::create_new(&path).unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
    }
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let disk = Disk::open(&Wish {
        read_only,
        ..wish(path)
    });
    let block = Block::new(Arc::new(disk.unwrap()));
    Bench {
        rig: Rig::running(Box::new(block), features),
        file,
        _folder: folder,
    }
}

const STATUS: u64 = BUFFERS + 0x10_0000;

impl Bench {
    fn header(&self, kind: u32, sector: u64) {
        let memory = &self.rig.memory;
        memory.write_obj(kind, GuestAddress(BUFFERS)).unwrap();
        memory.write_obj(sector, GuestAddress(BUFFERS + 8)).unwrap();
        memory.write_obj(0xEE_u8, GuestAddress(STATUS)).unwrap();
    }

    /// Makes a request with these data; its status and the bytes written.
    fn ask(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
        self.header(kind, sector);
        let mut pieces = vec![(BUFFERS, 16, false)];
        pieces.extend(data);
        pieces.push((STATUS, 1, true));
        self.rig.request(0, &pieces);
        self.rig.kick();
        let used = self.rig.used(0);
        assert_eq!(used.len(), 1, "broken: {}", self.rig.is_broken());
        let status = self.rig.memory.read_obj(GuestAddress(STATUS)).unwrap();
        (status, used[0].1)
    }

    fn at(&self, address: u64) -> u8 {
        self.rig.memory.read_obj(GuestAddress(address)).unwrap()
    }
}

const DATA: u64 = BUFFERS + 0x1000;

#[test]
fn what_is_on_the_disk_is_read() {
    let mut b = bench(false, F_FLUSH);
    let pieces = [
        (DATA, 512, true),
        (DATA + 0x1000, 100, true),
        (DATA + 0x2000, 412, true),
    ];
    assert_eq!(b.ask(request::IN, 7, &pieces), (0, 1025));
    assert_eq!([b.at(DATA), b.at(DATA + 511), b.at(DATA + 512)], [7, 7, 0]);
    assert_eq!([b.at(DATA + 0x1000), b.at(DATA + 0x2000 + 411)], [8, 8]);
    assert_eq!(b.rig.interrupts(), 1);
    for (sector, len) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (0, 511),
    ] {
        assert_eq!(b.ask(request::IN, sector, &[(DATA, len, true)]), (1, 0));
    }
}

#[test]
fn what_is_written_is_on_the_disk() {
    let mut b = bench(false, F_FLUSH);
    b.rig
        .memory
        .write_slice(&[0xAB; 1024], GuestAddress(DATA))
        .unwrap();
    let pieces = [(DATA, 1000, false), (DATA + 1000, 24, false)];
    assert_eq!(b.ask(request::OUT, 3, &pieces), (0, 1));
    assert_eq!(b.ask(request::FLUSH, 0, &[]), (0, 1));
    let mut bytes = [0; 1025];
    b.file.read_exact_at(&mut bytes, 3 * 512).unwrap();
    assert!(bytes[..1024].iter().all(|&b| b == 0xAB) && bytes[1024] == 5);
    assert_eq!(b.ask(request::OUT, SECTORS, &[(DATA, 512, false)]).0, 1);
}

#[test]
fn a_disk_that_is_read_only_is_not_written() {
    let mut b = bench(true, 0);
    for kind in [request::OUT, request::DISCARD, request::WRITE_ZEROES] {
        assert_eq!(b.ask(kind, 0, &[(DATA, 512, false)]).0, 1);
    }
    assert_eq!(b.ask(request::FLUSH, 0, &[]).0, 0);
    assert_eq!(b.ask(request::IN, 0, &[(DATA, 512, true)]), (0, 513));
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let mut b = bench(false, F_FLUSH);
    let range = |b: &Bench, at: u64, sector: u64, sectors: u32, flags: u32| {
        let memory = &b.rig.memory;
        memory.write_obj(sector, GuestAddress(at)).unwrap();
        memory.write_obj(sectors, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
    };
    for (kind, flags) in [
        (request::DISCARD, 0),
        (request::WRITE_ZEROES, 0),
        (request::WRITE_ZEROES, 1),
    ] {
        b.file.write_all_at(&[9; 4096], 8 * 512).unwrap();
        range(&b, DATA, 8, 4, flags);
        range(&b, DATA + 16, 14, 1, flags);
        assert_eq!(
            b.ask(kind, 0, &[(DATA, 32, false)]),
            (0, 1),
            "{kind} {flags}"
        );
        let mut bytes = [1; 4096];
        b.file.read_exact_at(&mut bytes, 8 * 512).unwrap();
        let zeroed = |sector: usize| bytes[sector * 512..][..512].iter().all(|&b| b == 0);
        let all: Vec<bool> = (0..8).map(zeroed).collect();
        assert_eq!(all, [true, true, true, true, false, false, true, false]);
    }
    range(&b, DATA, SECTORS, 1, 0);
    assert_eq!(b.ask(request::DISCARD, 0, &[(DATA, 16, false)]).0, 1);
    range(&b, DATA, 0, 1, 1);
    assert_eq!(b.ask(request::DISCARD, 0, &[(DATA, 16, false)]).0, 2);
    range(&b, DATA, 0, u32::MAX, 0);
    assert_eq!(b.ask(request::WRITE_ZEROES, 0, &[(DATA, 16, false)]).0, 2);
    assert_eq!(b.ask(request::DISCARD, 0, &[(DATA, 15, false)]).0, 1);
    assert_eq!(b.ask(request::DISCARD, 0, &[(DATA, 17 * 16, false)]).0, 2);
}

#[test]
fn it_has_a_name_and_a_size() {
    let mut b = bench(false, F_FLUSH);
    assert_eq!(b.ask(request::GET_ID, 0, &[(DATA, 20, true)]), (0, 21));
    let mut id = [0; 20];
    b.rig
        .memory
        .read_slice(&mut id, GuestAddress(DATA))
        .unwrap();
    assert_eq!(&id, b"a-disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let mut capacity = [0; 8];
    b.rig
        .page
        .read(super::super::registers::CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    assert_eq!(b.ask(99, 0, &[(DATA, 512, true)]), (2, 0));
}

#[test]
fn a_disk_that_shrank_is_an_error_of_the_disk() {
    let mut b = bench(false, F_FLUSH);
    b.file.set_len(10 * 512 + 100).unwrap();
    assert_eq!(b.ask(request::IN, 9, &[(DATA, 512, true)]).0, 0);
    assert_eq!(b.ask(request::IN, 10, &[(DATA, 512, true)]).0, 1);
    assert_eq!(b.ask(request::IN, 20, &[(DATA, 512, true)]).0, 1);
    assert!(!b.rig.is_broken());
}

#[test]
fn a_full_host_is_an_error_of_the_disk() {
    let full = Wish {
        read_only: false,
        ..wish("/dev/full".into())
    };
    // Not a disk; what writing there says is what a full file system says.
    assert!(matches!(Disk::open(&full), Err(DiskError::Kind(..))));
    let error = std::io::Error::from_raw_os_error(libc::ENOSPC);
    assert_eq!(Status::of(&error), Status::IoError);
}

#[test]
fn disks_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let message = |path: PathBuf| Disk::open(&wish(path)).unwrap_err().to_string();
    assert!(message(path("none")).contains("truncate"));
    assert!(message(folder.path().into()).contains("a directory"));
    File::create(path("empty")).unwrap();
    assert!(message(path("empty")).contains("is empty"));
    std::fs::write(path("odd"), [0; 513]).unwrap();
    assert!(message(path("odd")).contains("513 bytes, not a multiple of 512"));
    std::fs::write(path("good"), [0; 512]).unwrap();
    let first = Disk::open(&wish(path("good"))).unwrap();
    assert!(message(path("good")).contains("in use by another VM"));
    drop(first);
    let shared = Wish {
        read_only: true,
        ..wish(path("good"))
    };
    let readers = [Disk::open(&shared).unwrap(), Disk::open(&shared).unwrap()];
    assert!(message(path("good")).contains("in use"));
    drop(readers);
    for name in ["none", "odd", "empty"] {
        assert_eq!(message(path(name)).lines().count(), 1);
    }
}

#[test]
fn requests_without_an_answer_break_the_device_until_it_is_reset() {
    let mut b = bench(false, F_FLUSH);
    b.header(request::FLUSH, 0);
    b.rig.request(0, &[(BUFFERS, 16, false)]);
    b.rig.kick();
    assert!(b.rig.is_broken() && b.rig.used(0).is_empty());
    assert_eq!(b.rig.interrupts(), 1, "the guest is told");
    // It stands still.
    b.rig.request(0, &[(BUFFERS, 16, false), (STATUS, 1, true)]);
    b.rig.kick();
    assert!(b.rig.used(0).is_empty());
    b.rig.set_up(F_FLUSH);
    assert_eq!(b.ask(request::FLUSH, 0, &[]), (0, 1));
    // A header that is too short has an answer.
    b.rig.request(0, &[(BUFFERS, 15, false), (STATUS, 1, true)]);
    b.rig.kick();
    assert_eq!((b.rig.used(0).len(), b.at(STATUS)), (1, 1));
}

#[test]
fn chains_that_make_no_sense_break_the_device() {
    let good = Descriptor {
        address: BUFFERS,
        len: 16,
        flags: NEXT,
        next: 1,
    };
    let table = [
        // A loop of one, and of two.
        vec![Descriptor { next: 0, ..good }],
        vec![good, Descriptor { next: 0, ..good }],
        // Out of the table.
        vec![Descriptor { next: SIZE, ..good }],
        // Outside memory: behind it, across its end, around the end of addresses.
        vec![Descriptor {
            address: MEMORY,
            flags: 0,
            ..good
        }],
        vec![Descriptor {
            address: MEMORY - 8,
            flags: 0,
            ..good
        }],
        vec![Descriptor {
            address: u64::MAX - 7,
            flags: 0,
            ..good
        }],
        // Huge.
        vec![Descriptor {
            len: u32::MAX,
            flags: WRITE,
            ..good
        }],
        // To be read after to be written.
        vec![
            Descriptor {
                flags: NEXT | WRITE,
                ..good
            },
            Descriptor { flags: 0, ..good },
        ],
        // Indirect: outside memory, of half an entry, in itself.
        vec![Descriptor {
            address: MEMORY,
            flags: INDIRECT,
            ..good
        }],
        vec![Descriptor {
            len: 8,
            flags: INDIRECT,
            ..good
        }],
        // Nothing at all.
        vec![Descriptor {
            len: 0,
            flags: 0,
            ..good
        }],
    ];
    for descriptors in table {
        let mut b = bench(false, F_FLUSH);
        for (index, descriptor) in (0..).zip(&descriptors) {
            b.rig.describe(0, index, *descriptor);
        }
        b.rig.offer(0, 0);
        b.rig.kick();
        assert!(b.rig.is_broken(), "{descriptors:?}");
        b.rig.set_up(F_FLUSH);
        assert_eq!(b.ask(request::FLUSH, 0, &[]), (0, 1));
    }
    // A head outside the table.
    let mut b = bench(false, F_FLUSH);
    b.rig.offer(0, SIZE);
    b.rig.kick();
    assert!(b.rig.is_broken());
}

#[test]
fn an_indirect_table_is_followed() {
    let mut b = bench(false, F_FLUSH);
    b.header(request::IN, 5);
    let table = BUFFERS + 0x8000;
    let all = [
        (BUFFERS, 16, NEXT),
        (DATA, 512, NEXT | WRITE),
        (STATUS, 1, WRITE),
    ];
    for (index, (address, len, flags)) in (0_u16..).zip(all) {
        let next = index + 1;
        let at = table + u64::from(index) * 16;
        b.rig.describe_at(
            at,
            Descriptor {
                address,
                len,
                flags,
                next,
            },
        );
    }
    let whole = Descriptor {
        address: table,
        len: 48,
        flags: INDIRECT,
        next: 0,
    };
    b.rig.describe(0, 3, whole);
    b.rig.offer(0, 3);
    b.rig.kick();
    assert_eq!(b.rig.used(0), [(3, 513)]);
    assert_eq!([b.at(DATA), b.at(STATUS)], [5, 0]);
}

proptest! {
    /// Whatever stands in the table, no byte changes outside what the device may write: nothing is
    /// outside guest memory, and what is to be read stays as it is.
    #[test]
    fn any_table_is_taken(
        descriptors in prop::collection::vec(
            (0_u64..8, any::<u16>(), prop::sample::select(vec![0, 1, 15, 16, 17, 512, 4096, u32::MAX]),
             0_u16..8, 0_u16..20),
            1..16,
        ),
        kind in 0_u32..15, sector in prop::sample::select(vec![0, 1, 63, 64, u64::MAX]),
        heads in prop::collection::vec(0_u16..20, 1..20),
        raw_index in any::<Option<u16>>(),
    ) {
        let mut b = bench(false, 0);
        b.header(kind, sector);
        for (index, &(place, offset, len, flags, next)) in (0..).zip(&descriptors) {
            let address = match place {
                0..=4 => BUFFERS + u64::from(offset % 64) * 8,
                5 => MEMORY - u64::from(offset),
                6 => u64::from(offset) << 48,
                _ => super::super::rig::rings(0)[usize::from(offset % 3)],
            };
            b.rig.describe(0, index, Descriptor { address, len, flags, next });
        }
        for &head in &heads {
            b.rig.offer(0, head);
        }
        if let Some(index) = raw_index {
            let at = super::super::rig::rings(0)[1] + 2;
            b.rig.memory.write_obj(index, GuestAddress(at)).unwrap();
        }
        b.rig.kick();
        b.rig.set_up(0);
        prop_assert_eq!(b.ask(request::FLUSH, 0, &[]).0, 0);
    }
}
