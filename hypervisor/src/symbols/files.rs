//! Symbols from a file: a System.map, or an ELF file's symbol table.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use elf::abi::{SHN_UNDEF, STT_FUNC, STT_NOTYPE};
use elf::endian::AnyEndian;
use thiserror::Error;

use super::is_wanted;
use super::table::{Builder, Symbols};

/// Largest System.map: eight times that of the largest kernels.
const MAP_MAX: u64 = 128 << 20;
/// Largest ELF file.
const ELF_MAX: u64 = 4 << 30;
/// What Debian ships in the place of a System.map says so.
const STUB: &str = "The real System.map is in";

/// What is wrong with a file of symbols. Each message follows "symbols FILE".
#[derive(Debug, Error)]
pub enum SymbolsError {
    /// Cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// Debian's.
    #[error(
        "is a stub, as Debian ships it, without a symbol: leave it out, the kernel has a table of its own"
    )]
    Stub,
    /// Some other format.
    #[error(
        "is neither a System.map (line {0}) nor an ELF file: give the kernel's own, or leave it out"
    )]
    NotSymbols(usize),
    /// An ELF file that was stripped.
    #[error(
        "has no symbol table: it was stripped. Give the file it was made from, or leave it out"
    )]
    Stripped,
    /// An ELF file that contradicts itself.
    #[error("is truncated or damaged: {0}")]
    Damaged(String),
    /// Larger than any.
    #[error("has {0} MiB: give a System.map or an ELF file")]
    TooLarge(u64),
}

/// Reads a file of symbols of so many bytes.
pub fn read(mut file: File, bytes: u64) -> Result<Symbols, SymbolsError> {
    let mut magic = [0; 4];
    let is_elf = match file.read_exact(&mut magic) {
        Ok(()) => &magic == b"\x7fELF",
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(SymbolsError::Read(error)),
    };
    file.seek(SeekFrom::Start(0)).map_err(SymbolsError::Read)?;
    let most = if is_elf { ELF_MAX } else { MAP_MAX };
    if bytes > most {
        return Err(SymbolsError::TooLarge(bytes >> 20));
    }
    if is_elf {
        return from_elf(file);
    }
    let mut text = Vec::new();
    file.take(MAP_MAX)
        .read_to_end(&mut text)
        .map_err(SymbolsError::Read)?;
    from_map(&text)
}

/// A System.map: lines of address, kind and name.
fn from_map(text: &[u8]) -> Result<Symbols, SymbolsError> {
    let mut builder = Builder::default();
    let mut is_stub = false;
    for (number, line) in text.split(|&b| b == b'\n').enumerate() {
        let line = std::str::from_utf8(line).map_err(|_| SymbolsError::NotSymbols(number + 1))?;
        let line = line.trim_end();
        if line.is_empty() {
            continue;
        }
        let fields = line.split_once(' ').and_then(|(address, rest)| {
            let address = u64::from_str_radix(address, 16).ok()?;
            let (kind, name) = rest.split_once(' ')?;
            let [kind] = kind.as_bytes() else { return None };
            kind.is_ascii_graphic().then_some((address, *kind, name))
        });
        let Some((address, kind, name)) = fields else {
            return Err(SymbolsError::NotSymbols(number + 1));
        };
        is_stub |= name.starts_with(STUB);
        if is_wanted(kind, name) {
            builder.add(address, name);
        }
    }
    match builder.is_empty() {
        true if is_stub => Err(SymbolsError::Stub),
        true => Err(SymbolsError::NotSymbols(1)),
        false => Ok(builder.finish()),
    }
}

/// The symbol table of an ELF file: what may be code.
fn from_elf(file: File) -> Result<Symbols, SymbolsError> {
    let damaged = |e: elf::ParseError| SymbolsError::Damaged(e.to_string());
    let mut stream = elf::ElfStream::<AnyEndian, _>::open_stream(file).map_err(damaged)?;
    let Some((symbols, names)) = stream.symbol_table().map_err(damaged)? else {
        return Err(SymbolsError::Stripped);
    };
    let mut builder = Builder::default();
    for symbol in symbols.iter() {
        let may_be_code = matches!(symbol.st_symtype(), STT_FUNC | STT_NOTYPE);
        if symbol.st_shndx == SHN_UNDEF || !may_be_code {
            continue;
        }
        if let Ok(name) = names.get(symbol.st_name as usize) {
            builder.add(symbol.st_value, name);
        }
    }
    match builder.is_empty() {
        true => Err(SymbolsError::Stripped),
        false => Ok(builder.finish()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn of(bytes: &[u8]) -> Result<Symbols, SymbolsError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        read(file, bytes.len() as u64)
    }

    #[test]
    fn a_system_map() {
        let text = "0000000000000000 A fixed_percpu_data\nffffffff81000000 T _text\n\
                    ffffffff81000040 t secondary\nffffffff82000000 D linux_banner\n";
        let symbols = of(text.as_bytes()).unwrap();
        assert_eq!(symbols.len(), 2, "code alone");
        assert_eq!(symbols.address("secondary"), Some(0xFFFF_FFFF_8100_0040));
    }

    #[test]
    fn debians_stub_is_known() {
        let stub =
            "ffffffffffffffff B The real System.map is in the linux-image-6.1.0-dbg package\n";
        assert!(matches!(of(stub.as_bytes()), Err(SymbolsError::Stub)));
    }

    #[test]
    fn what_has_no_symbols() {
        for (bytes, line) in [
            (&b"hello\n"[..], 1),
            (b"ffffffff81000000 T a\n\xFF", 2),
            (b"", 1),
        ] {
            let Err(SymbolsError::NotSymbols(at)) = of(bytes) else {
                panic!("{bytes:?}");
            };
            assert_eq!(at, line);
        }
        assert!(matches!(of(b"\x7fELF"), Err(SymbolsError::Damaged(_))));
    }

    #[test]
    fn an_elf_file_s_own() {
        let me = File::open("/proc/self/exe").unwrap();
        let bytes = me.metadata().unwrap().len();
        match read(me, bytes) {
            Ok(symbols) => assert!(symbols.address("main").is_some()),
            Err(error) => assert!(matches!(error, SymbolsError::Stripped), "{error}"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_file_is_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000), elf: bool) {
            if elf {
                bytes.splice(0..0, *b"\x7fELF\x02\x01\x01");
            }
            let _ = of(&bytes);
        }

        #[test]
        fn any_text_is_survived(text in "([0-9a-f]{0,17} [TtA?]{0,2} [a-z. ]{0,9}\n){0,9}") {
            let _ = of(text.as_bytes());
        }
    }
}
